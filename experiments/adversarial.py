"""What an adversary brings: a trained tokenizer, trained on with and without one, all else alike.

python experiments/adversarial.py --workdir runs/adversarial --json adversarial.json

The same command again goes on where it was stopped.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from infinity_jax import config_files
from infinity_jax.checkpoints import pretrained
from infinity_jax.data.through_bits import ThroughBits
from infinity_jax.evaluation import evaluate_tokenizer, generation
from infinity_jax.metrics import bootstrap
from infinity_jax.runtime import start_up
from infinity_jax.training import train_tokenizer

CHANGES = [
    "--config.optim.learning_rate=2e-4",
    "--config.discriminator.start_step=0",
    "--config.train.sample_every=0",
    "--config.train.evaluate_every=0",
]
COLUMNS = ("psnr", "ssim", "kid", "used_bits")


def main() -> None:
    """Trains and evaluates what is missing, then prints the table and writes it."""
    arguments = _arguments()
    start_up.keep_freed_memory()
    start_up.log_to_stderr()
    report: dict[str, Any] = {"before": _evaluated(arguments.init_from, arguments.workdir / "before.json")}
    for name in ("without", "with"):
        workdir = arguments.workdir / name
        train_tokenizer.main(_config(arguments, adversarial=name == "with"), workdir)
        report[name] = _evaluated(str(workdir), workdir / f"evaluation-{arguments.steps}.json")
    report["kid_change_interval"] = _kid_change(arguments.workdir)
    print(f"{'adversary':>12}" + "".join(f"{column:>12}" for column in COLUMNS))
    for name in ("before", "without", "with"):
        print(f"{name:>12}" + "".join(f"{report[name][column]:12.5g}" for column in COLUMNS))
    low, high = report["kid_change_interval"]
    print(f"EffNet-KID with less without, 95% interval over the same pictures: {low:.5f} to {high:.5f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def _config(arguments: argparse.Namespace, adversarial: bool) -> ConfigDict:
    changes = [
        *CHANGES,
        f"--config.train.steps={arguments.steps}",
        f"--config.train.init_from={arguments.init_from}",
        f"--config.train.adversarial={str(adversarial).lower()}",
    ]
    config = config_files.load("configs/emoji_tokenizer.py", changes)
    model = pretrained.load_tokenizer(arguments.init_from).config
    config.model.update({name: getattr(model, name) for name in config.model})
    return config


def _evaluated(checkpoint: str, file: Path) -> dict:
    """What `evaluate-tokenizer` says of a checkpoint, from `file` if it was asked before."""
    if file.is_file():
        return json.loads(file.read_text())
    file.parent.mkdir(parents=True, exist_ok=True)
    return evaluate_tokenizer.main(file, checkpoint, sheet=file.with_suffix(".png"))


def _kid_change(workdir: Path) -> tuple[float, float]:
    """The 95% interval of what the adversary changes in EffNet-KID, over the same pictures."""
    tokenizers = [pretrained.load_tokenizer(workdir / name) for name in ("without", "with")]
    source = tokenizers[0].origin["data"]["source"]
    chosen = evaluate_tokenizer.choose_pictures(source, tokenizers[0].side, evaluate_tokenizer.PICTURES)
    without, with_adversary = (generation.features_of(ThroughBits(t)(chosen.kid)) for t in tokenizers)
    return bootstrap.kid_change_interval(
        without, with_adversary, generation.gallery_features(chosen.reference)
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--init-from", default="bundled", metavar="DIR", help="the tokenizer to train on")
    parser.add_argument(
        "--workdir", type=Path, required=True, help="gets a run with and one without adversary"
    )
    parser.add_argument("--steps", type=int, default=500, help="of each training")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the numbers go as well")
    return parser.parse_args()


if __name__ == "__main__":
    main()
