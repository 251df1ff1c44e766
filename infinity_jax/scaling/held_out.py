"""A check of the law: fitted without the run of most FLOP, it predicts that run."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from infinity_jax.scaling import law as law_module
from infinity_jax.scaling.frontier import outside
from infinity_jax.scaling.runs import Run, column, shortage


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The prediction of a run that was not fitted.

    Attributes:
      run: of most FLOP.
      without: how many runs were left out: it, and those that differ from it in the seed alone.
      measured: mean loss of those.
      predicted, interval: its loss from the others, with the uncertainty of the law and the scatter of one run.
      error: predicted / measured - 1.
      law: fitted to the others.
      outside: which of "N", "D", "C" lie beyond the others.
    """

    run: Run
    without: int
    measured: float
    predicted: float
    interval: list[float] | None
    error: float
    law: law_module.Law
    outside: list[str]


def held_out(runs: Sequence[Run], seed: int, resamples: int) -> HeldOut | None:
    """The check; None where the other runs are too few."""
    largest = max(runs, key=lambda run: (run.flop, run.parameters))
    place = (largest.parameters, largest.pictures)
    alike = [run for run in runs if (run.parameters, run.pictures) == place]
    others = [run for run in runs if (run.parameters, run.pictures) != place]
    if shortage(others) is not None:
        return None
    parameters, pictures = column(others, "parameters"), column(others, "pictures")
    fit = law_module.fit(parameters, pictures, column(others, "loss"), seed, resamples)
    predicted, measured = float(fit.law.loss(*place)), float(column(alike, "loss").mean())
    # The scatter of the runs left out, from another resample than the law, of which it must not know.
    scatter_R = np.roll(fit.noise_Rn[:, : len(alike)].mean(axis=1), 1)
    return HeldOut(
        run=largest,
        without=len(alike),
        measured=measured,
        predicted=predicted,
        interval=law_module.interval(fit.samples.loss(*place) * np.exp(scatter_R)),
        error=predicted / measured - 1,
        law=fit.law,
        outside=outside(others, *place, largest.flop),
    )
