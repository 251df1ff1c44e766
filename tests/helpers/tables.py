"""Synthetic tables of runs that obey a known law, with noise."""

from typing import Any

import numpy as np

from infinity_jax.tools.scaling import runs
from infinity_jax.tools.scaling.law import Law

LAW = Law(E=0.30, A=5.0, a=0.25, B=1.5, b=0.2)
SIZES = (270_000, 600_000, 1_300_000, 3_000_000, 8_000_000)
STEPS = (150, 600, 2400)
BATCH = 64


def rows(
    law=LAW, sizes=SIZES, steps=STEPS, noise=0.002, seed=0, vocabulary=None, **more
) -> list[dict[str, Any]]:
    """A grid of finished runs; `more` are columns that all share."""
    random = np.random.default_rng(seed)
    grid = [(size, length) for size in sizes for length in steps]
    return [
        {
            "name": f"{vocabulary or ''}size={size},length={length},seed=0",
            "status": "done",
            "size": f"{size / 1e6:.3g}m",
            "vocabulary": vocabulary,
            "length": str(length),
            "seed": 0,
            "parameters": size,
            "batch_size": BATCH,
            "steps": length,
            "pictures": length * BATCH,
            "flop": 1000 * size * length * BATCH,
            "rate_schedule": "cosine",
            "validation_loss": float(law.loss(size, length * BATCH)) * float(np.exp(noise * random.normal())),
            **more,
        }
        for size, length in grid
    ]


def with_curves(table, law=LAW, lift=0.03):
    """The rows with points on the way; `lift` is how far a falling rate keeps the first above the law, relatively."""
    return [
        row
        | {
            "validation_curve": {
                step: float(law.loss(row["parameters"], step * BATCH))
                * (1 + lift * (1 - step / row["steps"]))
                for step in np.linspace(row["steps"] / 30, row["steps"], 30).astype(int).tolist()
            }
        }
        for row in table
    ]


def selected(table) -> list[runs.Run]:
    """The runs of a table of one vocabulary."""
    empty = dict.fromkeys(("validation_curve", "steps", "rate_schedule", "vocabulary"))
    groups, _ = runs.select([empty | row for row in table], "table")
    ((_, group),) = groups.items()
    return group
