"""BSQ-ViT against tokenizers of convolutions at equal training time, on the bundled pictures.

python experiments/vit_tokenizer.py --minutes 12 --workdir runs/vit_tokenizer --json FILE --sheet FILE

How long a step takes is measured in turns on a quiet machine, and each has as many steps as fit into the minutes. The
same command again goes on where it was stopped, with the steps that were found then.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from infinity_jax import config_files
from infinity_jax.checkpoints import pretrained
from infinity_jax.checkpoints.trained import tokenizer_shapes
from infinity_jax.data import pictures, sources
from infinity_jax.data.through_bits import ThroughBits
from infinity_jax.evaluation import evaluate_tokenizer
from infinity_jax.files import sheets
from infinity_jax.runtime import start_up
from infinity_jax.training import train_tokenizer

# All have 32 bits a token, and 8x8 tokens on the last scale.
ARMS = {
    "convolutions, 6 scales": ("emoji_tokenizer", []),
    "convolutions, 1 scale": ("emoji_tokenizer", ["data.scales=8", "loss.scales=short"]),
    "ViT, 1 scale": ("bsq_vit:64px", []),
}
COLUMNS = ("psnr", "ssim", "kid", "used_bits", "steps", "parameters")
PACE_STEPS, TURNS, SHOWN = 40, 2, 12


def main() -> None:
    """Trains and evaluates what is missing, then prints the table and writes it."""
    arguments = _arguments()
    start_up.keep_freed_memory()
    start_up.log_to_stderr()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    steps = _steps_of(arguments)
    report: dict[str, Any] = {}
    for name, number in steps.items():
        workdir = arguments.workdir / _folder(name)
        train_tokenizer.main(_config(name, number), workdir)
        numbers = _evaluated(workdir)
        shapes = tokenizer_shapes(pretrained.load_tokenizer(str(workdir)).config)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        report[name] = numbers | {"steps": number, "parameters": parameters}
    print(f"{'':>24}" + "".join(f"{column:>12}" for column in COLUMNS))
    for name, numbers in report.items():
        print(f"{name:>24}" + "".join(f"{numbers[column]:12.6g}" for column in COLUMNS))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.sheet:
        _sheet(arguments)


def _sheet(arguments: argparse.Namespace) -> None:
    """Draws some held-out pictures through each tokenizer."""
    source = sources.open_source("emoji_captions", "validation")
    records = [source[int(i)] for i in np.linspace(0, len(source) - 1, SHOWN)]
    given = pictures.decode_squares(records, 64)
    through = [
        ThroughBits(pretrained.load_tokenizer(str(arguments.workdir / _folder(name))))(given) for name in ARMS
    ]
    sheets.comparison_sheet(
        [*through, given],
        [*ARMS, "held-out pictures"],
        arguments.sheet,
        captions=[record["caption"] for record in records],
        footer=sources.attribution(["emoji_captions"]),
    )


def _folder(name: str) -> str:
    return name.replace(", ", "_").replace(" ", "_").lower()


def _config(name: str, steps: int, **train: Any) -> ConfigDict:
    file, changes = ARMS[name]
    changes = [*changes, f"train.steps={steps}", "train.sample_every=0", "train.evaluate_every=0"]
    config = config_files.load(file, [f"--config.{change}" for change in changes])
    config.train.update(train)
    return config


def _steps_of(arguments: argparse.Namespace) -> dict[str, int]:
    """How many steps fit into the minutes, by the quicker of two turns of each; from a file if they are known."""
    file = arguments.workdir / "steps.json"
    if file.is_file():
        return json.loads(file.read_text())
    seconds: dict[str, float] = {}
    for turn in range(TURNS):
        for name in ARMS:
            workdir = arguments.workdir / f"pace_{_folder(name)}_{turn}"
            train_tokenizer.main(_config(name, PACE_STEPS, log_every=PACE_STEPS // 2), workdir)
            last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
            seconds[name] = min(last["seconds_per_step"], seconds.get(name, float("inf")))
    steps = {name: round(60 * arguments.minutes / one) for name, one in seconds.items()}
    file.write_text(json.dumps(steps))
    return steps


def _evaluated(workdir: Path) -> dict:
    """What `evaluate-tokenizer` says of a run, from its file if it was asked before."""
    file = workdir / "evaluation.json"
    if file.is_file():
        return json.loads(file.read_text())
    return evaluate_tokenizer.main(file, str(workdir), sheet=file.with_suffix(".png"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
