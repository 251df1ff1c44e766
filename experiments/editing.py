"""In-painting on held-out pictures: what is kept, the seam, what is drawn; bits quantised anew against fixed ones.

python experiments/editing.py --out editing

Boxes and free strokes over 10 to 50% of pictures of the splits validation and compositions, redrawn from the caption.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from infinity_jax.data import pictures, sources
from infinity_jax.data.through_bits import ThroughBits
from infinity_jax.evaluation import generation
from infinity_jax.files import sheets
from infinity_jax.metrics import bootstrap
from infinity_jax.metrics.kid import effnet_kid
from infinity_jax.runtime import start_up
from infinity_jax.sampling.editing import EditRequest
from infinity_jax.sampling.masks import paste
from infinity_jax.sampling.pipeline import InfinityPipeline

COUNT, OTHERS, SHOWN = 200, 2000, 10


def main() -> None:
    """Edits, measures, and writes numbers and a sheet."""
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    start_up.keep_freed_memory()
    pipeline = InfinityPipeline.from_pretrained(arguments.checkpoint)
    side = pipeline.picture_size()[0]
    records = [sources.open_source("emoji_captions", split) for split in ("validation", "compositions")]
    rows = [part[i] for part in records for i in range(len(part))][:COUNT]
    given = pictures.decode_squares(rows, side)
    masks = [mask_of(i, side) for i in range(len(rows))]
    request = EditRequest(
        [Image.fromarray(x) for x in given], [row["caption"] for row in rows], masks, paste=False
    )
    reconstructed = ThroughBits(pipeline.model.tokenizer)(given)
    white = np.stack([np.asarray(mask) > 127 for mask in masks])
    train = sources.open_source("emoji_captions", "train")
    places = np.random.default_rng(0).permutation(len(train))[:OTHERS]
    others = generation.gallery_features(pictures.decode_squares([train[int(i)] for i in places], side))

    report: dict[str, Any] = {"pictures": len(rows), "drawn_share": float(white.mean())}
    report["reconstructed"] = _numbers(given, reconstructed, white)
    drawn, features = {}, {}
    for name, fixed in (("anew", False), ("fixed", True)):
        edited = np.stack([np.asarray(x) for x in pipeline.edit(dataclasses.replace(request, fixed=fixed))])
        pasted = [
            paste(Image.fromarray(x), Image.fromarray(g), m)
            for x, g, m in zip(edited, given, masks, strict=True)
        ]
        drawn[name] = np.stack([np.asarray(x) for x in pasted])
        features[name] = generation.features_of(drawn[name])
        report[name] = _numbers(given, edited, white) | {"seam": seam(drawn[name], white)}
        report[name]["kid"], report[name]["kid_error"] = effnet_kid(features[name], others)
        report[name]["kid_interval"] = bootstrap.kid_interval(features[name], others)
    report["real_seam"] = seam(given, white)
    real = generation.features_of(given)
    report["real_kid"], report["real_kid_error"] = effnet_kid(real, others)
    report["kid_of_fixed_less_anew"] = bootstrap.kid_change_interval(
        features["anew"], features["fixed"], others
    )
    print(json.dumps(report, indent=1))
    (arguments.out / "editing.json").write_text(json.dumps(report, indent=1) + "\n")
    shown = np.linspace(0, len(rows) - 1, SHOWN).astype(int)
    grey = np.where(white[..., None], 160, given).astype(np.uint8)
    sheets.comparison_sheet(
        [[x[i] for i in shown] for x in (given, grey, drawn["anew"], drawn["fixed"])],
        ["given", "without what is drawn", "kept bits quantised anew", "kept bits fixed"],
        arguments.out / "editing.png",
        captions=[rows[i]["caption"] for i in shown],
        footer=sources.attribution(["emoji_captions"]),
    )


def mask_of(number: int, side: int) -> Image.Image:
    """Draws a box, or a free stroke, over 10 to 50% of a picture, always the same for a number."""
    random = np.random.default_rng(number)
    share = random.uniform(0.1, 0.5)
    while True:
        mask = Image.new("L", (side, side))
        brush = ImageDraw.Draw(mask)
        if number % 2 == 0:
            height = random.uniform(share, min(1.0, 2 * share)) ** 0.5
            width = min(1.0, share / height)
            top, left = (random.uniform(0, 1 - x) * side for x in (height, width))
            brush.rectangle((left, top, left + width * side, top + height * side), fill=255)
        else:
            points = random.uniform(0.1, 0.9, (6, 2)) * side
            brush.line([tuple(point) for point in points], fill=255, width=max(2, round(share * side / 2)))
        covered = np.asarray(mask).mean() / 255
        if 0.1 <= covered <= 0.5:
            return mask


def _numbers(given: np.ndarray, made: np.ndarray, white: np.ndarray) -> dict[str, Any]:
    """PSNR over what is kept, of each picture's pixels together; also a token's width away from what is drawn."""
    out = {}
    for name, away in (("kept_psnr", 0), ("kept_psnr_8_pixels_away", 8)):
        kept = ~grown(white, away)
        error = np.square(made.astype(np.float64) - given).mean(-1)
        psnr = np.array(
            [
                10 * np.log10(255**2 / max(e[k].mean(), 1e-3))
                for e, k in zip(error, kept, strict=True)
                if k.any()
            ]
        )
        out[name] = float(psnr.mean())
        out[f"{name}_interval"] = bootstrap.mean_interval(psnr)
    return out


def grown(white: np.ndarray, pixels: int) -> np.ndarray:
    """Widens white parts by so many pixels on all sides."""
    for axis in (1, 2):
        rolled = [np.roll(white, shift, axis) for shift in range(-pixels, pixels + 1)]
        white = np.any(rolled, axis=0)
    return white


def seam(made: np.ndarray, white: np.ndarray) -> dict[str, float]:
    """Mean difference of neighbouring pixels across the masks' edges, and of those up to 4 pixels from them."""
    grey = made.astype(np.float64).mean(-1)
    across, around = [], []
    for axis in (1, 2):
        step = np.abs(np.diff(grey, axis=axis))
        edge = np.diff(white.astype(int), axis=axis) != 0
        near = grown(edge, 4) & ~edge
        across.append(step[edge])
        around.append(step[near])
    return {"across": float(np.concatenate(across).mean()), "around": float(np.concatenate(around).mean())}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
