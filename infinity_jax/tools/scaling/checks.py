"""Pearson correlation of the validation loss with metrics of generated pictures (paper section 4.5, Fig. 10)."""

import dataclasses
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from infinity_jax.tools.scaling import law as law_module
from infinity_jax.tools.scaling.frontier import outside
from infinity_jax.tools.scaling.law import PERCENT
from infinity_jax.tools.scaling.runs import Run, column, shortage

# The paper's, over its sizes from 125M to 4.7B: what it measured, by the name of a column without marks.
PAPER = {
    "geneval": ("GenEval", -0.983),
    "imagereward": ("ImageReward", -0.981),
    "hpsv21": ("HPSv2.1", -0.979),
}
LOWER_IS_BETTER = ("kid", "fid")
# With three runs any interval is all of [-1, 1].
_LEAST_FOR_INTERVAL = 4


@dataclasses.dataclass(frozen=True)
class Correlation:
    """The correlation of one metric with the validation loss, over `runs` runs that have both.

    Attributes:
      pearson: None where there are fewer than three runs, or all are alike.
      interval: by Fisher's transformation; None with fewer than four runs.
      paper: the paper's figure for the same metric.
    """

    metric: str
    runs: int
    pearson: float | None
    interval: list[float] | None
    lower_is_better: bool
    paper: float | None


def correlations(runs: Sequence[Run]) -> list[Correlation]:
    """Correlates each metric that any of the runs has."""
    found = []
    for name in dict.fromkeys(name for run in runs for name in run.metrics):
        having = [run for run in runs if name in run.metrics]
        values = np.asarray([run.metrics[name] for run in having], float)
        r, plain = pearson(column(having, "loss"), values), plain_name(name)
        found.append(
            Correlation(
                metric=name,
                runs=len(having),
                pearson=r,
                interval=None if r is None else fisher_interval(r, len(having)),
                lower_is_better=plain.startswith(LOWER_IS_BETTER),
                paper=PAPER[plain][1] if plain in PAPER else None,
            )
        )
    return found


def pearson(x_n: Float[np.ndarray, "n"], y_n: Float[np.ndarray, "n"]) -> float | None:
    """Computes Pearson's r; None for fewer than three pairs, or where x or y is constant."""
    if len(x_n) < 3 or np.ptp(x_n) == 0 or np.ptp(y_n) == 0:
        return None
    return float(np.clip(np.corrcoef(x_n, y_n)[0, 1], -1, 1))


def fisher_interval(r: float, n: int) -> list[float] | None:
    """Computes the PERCENT interval of a correlation of `n` pairs: atanh(r) is normal with variance 1 / (n - 3)."""
    if n < _LEAST_FOR_INTERVAL:
        return None
    if abs(r) == 1:
        return [r, r]
    half = NormalDist().inv_cdf(0.5 + PERCENT / 200) / np.sqrt(n - 3)
    return [float(np.tanh(np.arctanh(r) - half)), float(np.tanh(np.arctanh(r) + half))]


def plain_name(metric: str) -> str:
    """Keeps small letters and digits: "metric_Image_Reward" -> "imagereward", "hpsv2" -> "hpsv21"."""
    plain = "".join(letter for letter in metric.lower().removeprefix("metric_") if letter.isalnum())
    return "hpsv21" if plain == "hpsv2" else plain


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The prediction of a run that was not fitted, as in fit.json.

    Attributes:
      run, parameters, pictures, flop: name, N, D and C of the run of most FLOP.
      runs_left_out: it, and those that differ from it in the seed alone.
      measured: mean loss of those.
      predicted, interval: its loss from the others, with the uncertainty of the law and the scatter of one run.
      relative_error: predicted / measured - 1.
      outside: which of "N", "D", "C" lie beyond the others.
      constants: of the law fitted to the others.
    """

    run: str
    parameters: int
    pictures: int
    flop: int
    runs_left_out: int
    measured: float
    predicted: float
    interval: list[float] | None
    relative_error: float
    outside: list[str]
    constants: law_module.Law


def held_out(runs: Sequence[Run], seed: int, resamples: int) -> HeldOut | None:
    """Predicts the largest run from the others; None where these are too few."""
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
        run=largest.name,
        parameters=largest.parameters,
        pictures=largest.pictures,
        flop=largest.flop,
        runs_left_out=len(alike),
        measured=measured,
        predicted=predicted,
        interval=law_module.interval(fit.samples.loss(*place) * np.exp(scatter_R)),
        relative_error=predicted / measured - 1,
        outside=outside(others, *place, largest.flop),
        constants=fit.law,
    )
