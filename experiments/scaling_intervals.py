"""How often the 95% intervals of a fitted scaling law hold the constants that made up the table.

python experiments/scaling_intervals.py
"""

import argparse
import dataclasses

import numpy as np

from infinity_jax.tools.scaling import law

CONSTANTS = law.Law(E=0.35, A=2.0, a=0.2, B=0.9, b=0.15)
SIZES = np.array([0.27e6, 0.75e6, 1.4e6, 3.6e6, 7.3e6])
LENGTHS = {"16x apart": (150, 600, 2400), "8x apart": (100, 200, 400, 800)}  # in steps
BATCH = 32


def main() -> None:
    """Prints the share of tables whose interval holds the true value, for each constant and each set of lengths."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tables", type=int, default=200, help="of each kind")
    parser.add_argument("--noise", type=float, default=0.003, help="standard deviation of log loss")
    arguments = parser.parse_args()
    names = [field.name for field in dataclasses.fields(law.Law)]
    print(f"{'lengths':>10}" + "".join(f"{name:>8}" for name in names))
    for kind, lengths in LENGTHS.items():
        held = [_held(seed, lengths, arguments.noise) for seed in range(arguments.tables)]
        print(f"{kind:>10}" + "".join(f"{share:8.1%}" for share in np.mean(held, axis=0)))


def _held(seed: int, lengths: tuple[int, ...], noise: float) -> list[bool]:
    """Which constants lie in their intervals, for one table."""
    parameters, steps = (axis.ravel() for axis in np.meshgrid(SIZES, lengths, indexing="ij"))
    pictures = steps.astype(float) * BATCH
    spread = np.exp(noise * np.random.default_rng(seed).normal(size=pictures.shape))
    fit = law.fit(parameters, pictures, CONSTANTS.loss(parameters, pictures) * spread, seed, resamples=200)
    ends = [law.interval(samples) for samples in dataclasses.astuple(fit.samples)]
    true = dataclasses.astuple(CONSTANTS)
    return [end is not None and end[0] <= value <= end[1] for end, value in zip(ends, true, strict=True)]


if __name__ == "__main__":
    main()
