"""Quality of the tokenizer against bits per token (paper section 3.2 and Table 4), on the bundled pictures.

python experiments/vocabulary.py --workdir runs/vocabulary --json vocabulary.json --plot vocabulary.png

Trains one tokenizer for each number of bits, all alike, and evaluates it. The same command again goes on where it was
stopped, and two of them with other --bits may run side by side.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from infinity_jax import config_files
from infinity_jax.evaluation import evaluate_tokenizer
from infinity_jax.runtime import start_up
from infinity_jax.training import train_tokenizer

BITS = (8, 16, 24, 32, 64)
# A quarter of the bundled tokenizer's work a step, and of its steps. With the usual weight of the quantiser's loss, 4,
# so short a training of 64 bits is held up by the entropy penalty, which grows with them.
CHANGES = [
    "--config.model.base_width=64",
    "--config.loss.quantizer=1.0",
    "--config.train.sample_every=0",
    "--config.train.evaluate_every=0",
]
COLUMNS = ("bits", "psnr", "ssim", "kid", "used_bits")


def main() -> None:
    """Trains and evaluates what is missing, then prints the table and writes it."""
    arguments = _arguments()
    start_up.keep_freed_memory()
    start_up.log_to_stderr()
    report = [_measured(bits, arguments) for bits in arguments.bits]
    print("".join(f"{name:>12}" for name in COLUMNS))
    for numbers in report:
        print("".join(f"{numbers[name]:12.5g}" for name in COLUMNS))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.plot:
        _plot(report, arguments.plot)


def _measured(bits: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """What `evaluate-tokenizer` says of a tokenizer with so many bits."""
    workdir = arguments.workdir / f"bits_{bits}"
    changes = [*CHANGES, f"--config.model.bits={bits}", f"--config.train.steps={arguments.steps}"]
    state = train_tokenizer.main(config_files.load("configs/emoji_tokenizer.py", changes), workdir)
    if int(state.step) != arguments.steps:
        raise SystemExit(
            f"{workdir} has {int(state.step)} steps, not {arguments.steps}; use another --workdir"
        )
    # The name tells of how many steps the numbers are, so that a longer run is measured again.
    evaluation = workdir / f"evaluation-{arguments.steps}.json"
    if evaluation.is_file():
        return json.loads(evaluation.read_text())
    sheet = evaluation.with_suffix(".png")
    return evaluate_tokenizer.main(evaluation, str(workdir), sheet=sheet)


def _plot(report: list[dict[str, Any]], path: Path) -> None:
    """PSNR and EffNet-KID against bits, with their 95% intervals."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    bits = [numbers["bits"] for numbers in report]
    for axis, name, label in zip(
        axes, ("psnr", "kid"), ("PSNR in dB (higher is better)", "EffNet-KID (lower is better)"), strict=True
    ):
        values = [numbers[name] for numbers in report]
        ends = [numbers[f"{name}_interval"] for numbers in report]
        below = [value - low for value, (low, _) in zip(values, ends, strict=True)]
        above = [high - value for value, (_, high) in zip(values, ends, strict=True)]
        axis.errorbar(bits, values, yerr=(below, above), marker="o", capsize=3)
        axis.set_xticks(bits)
        axis.set_xlabel("bits per token (vocabulary 2^bits)")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workdir", type=Path, required=True, help="gets a run for each number of bits")
    parser.add_argument("--bits", type=int, nargs="+", default=BITS, help="bits per token")
    parser.add_argument("--steps", type=int, default=1500, help="of each training")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the numbers go as well")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a PNG of quality against bits")
    return parser.parse_args()


if __name__ == "__main__":
    main()
