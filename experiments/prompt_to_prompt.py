"""Editing from prompt to prompt, where the true edited picture exists: captions that differ in one word.

python experiments/prompt_to_prompt.py --out prompt_to_prompt

Pairs of the bundled pictures; the target is of a split that was not trained on where there is such a one. Beside the
thresholds: plain sampling of the target's caption, the given picture itself, and variations that keep the first scales.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from infinity_jax.data import pictures, sources
from infinity_jax.data.through_bits import ThroughBits
from infinity_jax.evaluation import generation
from infinity_jax.files import sheets
from infinity_jax.metrics import bootstrap
from infinity_jax.metrics.psnr import psnr_per_picture
from infinity_jax.runtime import start_up
from infinity_jax.sampling.editing import EditRequest
from infinity_jax.sampling.pipeline import InfinityPipeline
from infinity_jax.sampling.request import SampleRequest

PAIRS, SHOWN = 100, 10
THRESHOLDS, STRENGTHS = (0.02, 0.1, 0.3, 0.5, 0.8), (1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6)


def main() -> None:
    """Edits, measures, and writes numbers and a sheet."""
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    start_up.keep_freed_memory()
    pipeline = InfinityPipeline.from_pretrained(arguments.checkpoint)
    pairs = pairs_of_captions()
    side = pipeline.picture_size()[0]
    source, target = (pictures.decode_squares([pair[i] for pair in pairs], side) for i in (0, 1))
    captions = [[pair[i]["caption"] for pair in pairs] for i in (0, 1)]
    features = generation.features_of(target)
    seeds = range(len(pairs))
    request = EditRequest([Image.fromarray(x) for x in source], captions[1], seeds=seeds)

    made: dict[str, np.ndarray] = {
        "the given picture": source,
        "the true one, through the tokenizer": ThroughBits(pipeline.model.tokenizer)(target),
        "plain sampling": pipeline.arrays(SampleRequest(captions[1], seeds)),
    }
    for strength in STRENGTHS:
        varied = pipeline.edit(dataclasses.replace(request, strength=strength))
        made[f"strength {strength:.2f}"] = np.stack([np.asarray(x) for x in varied])
    for threshold in THRESHOLDS:
        asked = dataclasses.replace(request, source_prompts=captions[0], threshold=threshold)
        made[f"threshold {threshold}"] = np.stack([np.asarray(x) for x in pipeline.edit(asked)])
    report: dict[str, Any] = {"pairs": len(pairs)}
    for name, images in made.items():
        report[name] = _numbers(target, images, features)
        print(f"{name:>38}: {report[name]['psnr']:.2f} dB, {report[name]['distance']:.4f}", flush=True)
    (arguments.out / "prompt_to_prompt.json").write_text(json.dumps(report, indent=1) + "\n")
    strength, threshold = (_best(report, kind) for kind in ("strength", "threshold"))
    shown = np.linspace(0, len(pairs) - 1, SHOWN).astype(int)
    rows = ("the given picture", "plain sampling", strength, threshold)
    sheets.comparison_sheet(
        [*(made[name][shown] for name in rows), target[shown]],
        [*rows, "the true one"],
        arguments.out / "prompt_to_prompt.png",
        captions=[f"{captions[0][i]} -> {captions[1][i]}" for i in shown],
        footer=sources.attribution(["emoji_captions"]),
    )


def pairs_of_captions() -> list[tuple[Any, Any]]:
    """Finds records whose captions differ in one word, always the same ones, targets that are held back first."""
    splits = ("compositions", "validation", "train")
    by_split = [sources.open_source("emoji_captions", split) for split in splits]
    records = [part[i] for part in by_split for i in range(len(part))]
    held = sum(len(part) for part in by_split[:2])
    by_frame: dict[tuple[int, str], list[int]] = {}
    for number, record in enumerate(records):
        words = record["caption"].split()
        for place in range(len(words)):
            frame = " ".join([*words[:place], "*", *words[place + 1 :]])
            if len(words) > 1:
                by_frame.setdefault((place, frame), []).append(number)
    found = []
    for target in np.random.default_rng(0).permutation(held):
        groups = [group for group in by_frame.values() if target in group]
        others = sorted({other for group in groups for other in group if other >= held})
        if others:
            other = int(np.random.default_rng(target).choice(others))
            found.append((records[other], records[target]))
    return found[:PAIRS]


def _numbers(target: np.ndarray, made: np.ndarray, features: np.ndarray) -> dict[str, Any]:
    """PSNR, and the distance of unit features of EfficientNet, to the true picture; 95% intervals of the means."""
    psnr = psnr_per_picture(target, made)
    own = generation.features_of(made)
    unit, wanted = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (own, features))
    distance = np.linalg.norm(unit - wanted, axis=1)
    return {
        "psnr": float(psnr.mean()),
        "psnr_interval": list(bootstrap.mean_interval(psnr)),
        "distance": float(distance.mean()),
        "distance_interval": list(bootstrap.mean_interval(distance)),
    }


def _best(report: dict[str, Any], kind: str) -> str:
    return min((name for name in report if name.startswith(kind)), key=lambda name: report[name]["distance"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
