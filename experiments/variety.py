"""Projected guidance, and bits that are kept uncertain: quality and variety on prompts that were never trained on.

python experiments/variety.py --out variety

Each prompt is drawn with several seeds. Quality: EffNet-KID against real pictures, retrieval of the true picture, PSNR
to it. Variety: the mean distance of unit features of EfficientNet between two pictures of one prompt.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from infinity_jax.data import sources
from infinity_jax.evaluation import generation
from infinity_jax.files import sheets
from infinity_jax.metrics import bootstrap
from infinity_jax.metrics.kid import effnet_kid
from infinity_jax.metrics.psnr import psnr_per_picture
from infinity_jax.metrics.retrieval import retrieval_ranks
from infinity_jax.runtime import start_up
from infinity_jax.sampling.pipeline import InfinityPipeline
from infinity_jax.sampling.request import SampleRequest

SHOWN = 12
# DiverseAR's targets, which it gives for the first six of its scales.
DIVERSE = (0.60, 0.60, 0.65, 0.70, 0.75, 0.80)
GUIDANCE: dict[str, dict[str, Any]] = {
    f"cfg {cfg:g}{name}": {"cfg": cfg, **changes}
    for cfg in (2.0, 4.0, 8.0, 16.0)
    for name, changes in {
        "": {},
        ", across alone": {"guidance_parallel": 0.0},
        ", at most 2": {"guidance_norm": 2.0},
        ", across alone, at most 2": {"guidance_parallel": 0.0, "guidance_norm": 2.0},
    }.items()
}
VARIETY: dict[str, dict[str, Any]] = {
    **{f"tau {tau:g}": {"tau": tau} for tau in (0.2, 0.5, 1.0, 1.5, 2.0)},
    **{f"confidence, first {n}": {"bit_confidence": DIVERSE[:n]} for n in (1, 2, 3, 4)},
    **{f"confidence 0.{n}, first 3": {"bit_confidence": (n / 100,) * 3} for n in (80, 90, 95)},
}


def main() -> None:
    """Draws, measures, and writes numbers and a sheet."""
    arguments = _arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    start_up.keep_freed_memory()
    pipeline = InfinityPipeline.from_pretrained("bundled")
    real = generation.real_pictures("emoji_captions", pipeline.picture_size()[0])
    truth, captions = real.compositions.images, real.compositions.captions
    train, held = (generation.gallery_features(split.images) for split in (real.train, real.compositions))
    gallery, places = np.concatenate([train, held]), np.arange(len(held)) + len(train)
    report, shown = {}, {}
    for name, changes in {**GUIDANCE, **VARIETY}.items():
        request = SampleRequest(
            captions * arguments.seeds, range(len(captions) * arguments.seeds), batch=arguments.batch
        )
        images = pipeline.arrays(request, pipeline.settings.changed(**changes))
        features = generation.features_of(images)
        ranks = retrieval_ranks(features, gallery, np.tile(places, arguments.seeds))
        psnr = psnr_per_picture(np.tile(truth, (arguments.seeds, 1, 1, 1)), images)
        kid, _ = effnet_kid(features, train)
        values = {
            "top1": ranks < 1,
            "top5": ranks < 5,
            "psnr": psnr,
            "variety": _variety(features, len(captions)),
        }
        report[name] = {"kid": kid, "kid_interval": list(bootstrap.kid_interval(features, train))}
        for key, own in values.items():
            own = np.asarray(own, np.float64)
            report[name] |= {key: float(own.mean()), f"{key}_interval": list(bootstrap.mean_interval(own))}
        shown[name] = images[:SHOWN]
        row = {key: round(report[name][key], 3) for key in ("kid", "top1", "top5", "psnr", "variety")}
        print(f"{name:>28}: {row}", flush=True)
        (arguments.out / "variety.json").write_text(json.dumps(report, indent=1) + "\n")
    for sheet, rows in {"guidance": list(GUIDANCE)[8:], "variety": list(VARIETY)}.items():
        sheets.comparison_sheet(
            [*(shown[name] for name in rows), truth[:SHOWN]],
            [*rows, "the true one"],
            arguments.out / f"{sheet}.png",
            captions=captions[:SHOWN],
            footer=sources.attribution(["emoji_captions"]),
        )


def _variety(features: np.ndarray, prompts: int) -> np.ndarray:
    """Measures of each prompt the mean distance between two of its pictures, float64 [prompts]."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    by_seed = unit.reshape(-1, prompts, unit.shape[1]).astype(np.float64)
    pairs = [(a, b) for a in range(len(by_seed)) for b in range(a)]
    return np.mean([np.linalg.norm(by_seed[a] - by_seed[b], axis=1) for a, b in pairs], axis=0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2, help="pictures of each prompt")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
