"""Super-resolution of the bundled pictures: both stages, on clean and on spoiled pictures, 4 and 2 times.

python experiments/upscaling.py --workdir runs/upscaling --json FILE --out FOLDER

Beside the upscalers: bicubic enlargement; the tokenizer's own reconstruction of the true and of the enlarged picture;
the first scales taken from the enlarged picture without any training, and from the true one. The same command again
goes on where it was stopped.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from infinity_jax import config_files
from infinity_jax.data import pictures
from infinity_jax.data.degradation.process import CLEAN, DegradationConfig
from infinity_jax.data.sources import attribution
from infinity_jax.data.through_bits import ThroughBits
from infinity_jax.evaluation import evaluate_upscaler
from infinity_jax.evaluation.evaluate_upscaler import HeldBack, held_back, measured, upscaled
from infinity_jax.runtime import start_up
from infinity_jax.sampling import editing
from infinity_jax.sampling.given import Given
from infinity_jax.sampling.request import SampleRequest
from infinity_jax.sampling.upscaling import UpscalePipeline
from infinity_jax.scales import make_schedule
from infinity_jax.training import train_upscaler

ARMS = {
    "4 times, clean": ("64px", True),
    "4 times, spoiled": ("64px", False),
    "2 times, clean": ("64px_x2", True),
    "2 times, spoiled": ("64px_x2", False),
}
TO_CLEAN = ["degradation.rounds=0"]


def main() -> None:
    """Trains and measures what is missing, then prints the tables and writes them."""
    arguments = _arguments()
    start_up.keep_freed_memory()
    start_up.log_to_stderr()
    for folder in (arguments.workdir, arguments.out):
        folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"steps": arguments.steps}
    for arm in arguments.arms or ARMS:
        file = arguments.workdir / f"{_name(arm)}.json"
        if not file.is_file():
            file.write_text(json.dumps(_measured(arm, arguments)))
        report[arm] = json.loads(file.read_text())
        print(arm)
        print(evaluate_upscaler.as_text(report[arm], list(report[arm])), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def _name(arm: str) -> str:
    return arm.replace(", ", "_").replace(" ", "_")


def _trained(arm: str, stage: int, arguments: argparse.Namespace) -> Path:
    size, clean = ARMS[arm]
    workdir = arguments.workdir / f"{_name(arm)}_{stage}"
    changes = [f"train.steps={arguments.steps[stage - 1]}", "train.evaluate_every=0"]
    changes += TO_CLEAN if clean else []
    if stage == 2:
        changes.append(f"train.init_from={_trained(arm, 1, arguments)}")
    config = config_files.load(f"upscaler:{size},{stage}", [f"--config.{change}" for change in changes])
    train_upscaler.main(config, workdir)
    return workdir


def _measured(arm: str, arguments: argparse.Namespace) -> dict[str, Any]:
    _, clean = ARMS[arm]
    first = UpscalePipeline.from_pretrained(_trained(arm, 1, arguments))
    second = UpscalePipeline.from_pretrained(_trained(arm, 2, arguments))
    degradation = CLEAN if clean else DegradationConfig(**_degradation(second))
    held = held_back("emoji_captions", second, degradation, evaluate_upscaler.PICTURES)
    settings = second.pipeline.settings
    through_bits = ThroughBits(second.pipeline.model.tokenizer)
    enlarged = evaluate_upscaler.bicubic(held)
    made = {
        "bicubic": enlarged,
        "tokenizer, true": through_bits(held.true),
        "tokenizer, enlarged": through_bits(enlarged),
        "its own first scales": _with_first_scales_of(enlarged, first, held),
        "the true first scales": _with_first_scales_of(held.true, first, held),
        "stage 1": upscaled(first, held, settings),
        "stage 2": upscaled(second, held, settings),
        "stage 2, colours corrected": upscaled(second, held, settings, colour="adain+wavelet"),
        "stage 2, wrong captions": upscaled(second, held, settings, held.captions[1:] + held.captions[:1]),
    }
    if not clean:
        trained_on_clean = _trained(arm.replace("spoiled", "clean"), 2, arguments)
        made["stage 2, trained on clean"] = upscaled(
            UpscalePipeline.from_pretrained(trained_on_clean), held, settings
        )
    shown = {name: made[name] for name in ("bicubic", "tokenizer, true", "stage 1", "stage 2")}
    footer = attribution(["emoji_captions"])
    evaluate_upscaler.draw_sheet(arguments.out / f"{_name(arm)}.png", held, shown, footer)
    return {name: measured(images, held) for name, images in made.items()}


def _degradation(pipeline: UpscalePipeline) -> dict[str, Any]:
    values = pipeline.upscaler.origin["degradation"]
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _with_first_scales_of(images: np.ndarray, pipeline: UpscalePipeline, held: HeldBack) -> np.ndarray:
    """Draws the later scales on the first ones of other pictures, with the system as it was trained to draw."""
    model, count = pipeline.pipeline.model, len(pipeline.upscaler.config.sizes)
    encode = editing.encoder(model.tokenizer.config)
    features = np.concatenate(
        [np.asarray(encode(model.tokenizer.params, pictures.to_float(x)[None])) for x in images]
    )
    sizes = make_schedule(model.tokenizer.scales).sizes[:count]
    where: Any = tuple(np.ones((len(images), *size), bool) for size in sizes)
    given: Any = features
    request = SampleRequest(
        held.captions, range(len(images)), given=Given(where, features_BHWd=given), given_scales=count
    )
    return pipeline.pipeline.arrays(request)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="gets a sheet for each arm")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="default: all")
    parser.add_argument("--steps", type=int, nargs=2, default=(1000, 600), help="of both stages")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
