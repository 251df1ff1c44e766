"""IsoFLOP parabolas: loss against log N at equal training FLOP, and where each is lowest."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.interpolate import PchipInterpolator

from infinity_jax.tools.scaling.law import interval
from infinity_jax.tools.scaling.runs import Run, sizes

LEVELS = 5
LEAST_SIZES = 3
# A curve's first tenth is the rate's warm-up and the fall from ln 2.
_SKIPPED = 0.1


@dataclasses.dataclass(frozen=True)
class Parabola:
    """Loss of the sizes that reach this FLOP, and the parabola through them.

    Attributes:
      sizes, parameters, losses: of each, the losses interpolated between the size's own runs.
      coefficients: of log(N / centre)^2, log(N / centre) and 1.
      minimum: N at the lowest point; None where the parabola has none.
      minimum_interval: from the resampled tables.
      lowest: loss there.
      place: "inside" the sizes, "below" the smallest, "above" the largest, or "none".
    """

    flop: float
    sizes: tuple[str, ...]
    parameters: tuple[int, ...]
    losses: tuple[float, ...]
    coefficients: tuple[float, float, float]
    centre: float
    minimum: float | None
    minimum_interval: list[float] | None
    lowest: float | None
    place: str


@dataclasses.dataclass(frozen=True)
class IsoFlop:
    """Parabolas, cheapest first, and N_opt ~ C^exponent through the minima that lie inside.

    Attributes:
      source: "ends" of runs, or "curves": each size's longest run, all along.
      exponent, constant: N_opt = constant C^exponent; None with fewer than two minima inside.
      exponent_interval: from the resampled tables, for the same levels.
    """

    parabolas: tuple[Parabola, ...]
    source: str
    exponent: float | None
    constant: float | None
    exponent_interval: list[float] | None


def isoflop(runs: Sequence[Run], losses_Rn: Float[np.ndarray, "R n"]) -> IsoFlop:
    """Fits parabolas at LEVELS values of FLOP, spread over the range that LEAST_SIZES sizes reach; maybe none.

    A size's loss at a FLOP is interpolated along log FLOP between the ends of its runs, never beyond. Where fewer than
    three sizes ever meet so, or where all rates are constant and a run passes through the ends of shorter ones, it is
    read from the curve of the size's longest run.

    Args:
      losses_Rn: float64, resampled losses of the runs, for intervals.
    """
    column_of = {id(run): losses_Rn[:, i] for i, run in enumerate(runs)}
    ends = [_ends(group, column_of) for group in sizes(runs)]
    curves = [_curve(group, column_of) for group in sizes(runs)]
    source = "ends"
    if all(run.constant_rate and run.curve for run in runs) or not len(_levels(ends)):
        source = "curves"
    lines = ends if source == "ends" else curves
    fits = [_parabola(sizes(runs), lines, level) for level in _levels(lines)]
    inside = [(parabola, minima_R) for parabola, minima_R in fits if parabola.place == "inside"]
    exponent = constant = exponent_interval = None
    if len(inside) >= 2:
        logs = np.log([parabola.flop for parabola, _ in inside])
        minima = np.log(np.asarray([parabola.minimum for parabola, _ in inside], float))
        exponent, log_constant = (float(value) for value in np.polyfit(logs, minima, 1))
        constant = float(np.exp(log_constant))
        sampled = np.log([minima_R for _, minima_R in inside])
        usable = sampled[:, np.isfinite(sampled).all(axis=0)]
        slopes_R = np.full(len(losses_Rn), np.nan)
        if usable.size:
            slopes_R[: usable.shape[1]] = np.polyfit(logs, usable, 1)[0]
        exponent_interval = interval(slopes_R)
    return IsoFlop(tuple(parabola for parabola, _ in fits), source, exponent, constant, exponent_interval)


@dataclasses.dataclass(frozen=True)
class _Line:
    """Losses of one size along log FLOP, [m, 1 + R]: the table's own first, then the resampled."""

    log_flop: np.ndarray
    losses: np.ndarray

    def covers(self, log_flop: float | np.ndarray) -> np.ndarray:
        """Tells whether it reaches from below to above; one point, or FLOP that do not grow with pictures, nowhere."""
        if len(self.log_flop) < 2 or np.diff(self.log_flop).min() <= 0:
            return np.zeros(np.shape(log_flop), bool)
        inside = (self.log_flop[0] - 1e-9 <= log_flop) & (log_flop <= self.log_flop[-1] + 1e-9)
        return np.asarray(inside)


def _ends(group: list[Run], column_of: dict[int, np.ndarray]) -> _Line:
    """Joins the ends of runs, the mean of those that differ in the seed alone."""
    points = []
    for pictures in sorted({run.pictures for run in group}):
        alike = [run for run in group if run.pictures == pictures]
        losses = [np.append(run.loss, column_of[id(run)]) for run in alike]
        points.append((np.log(np.mean([run.flop for run in alike])), np.mean(losses, axis=0)))
    return _Line(np.asarray([x for x, _ in points]), np.stack([losses for _, losses in points]))


def _curve(group: list[Run], column_of: dict[int, np.ndarray]) -> _Line:
    """Follows the longest run, scaled as a whole where its end was resampled."""
    run = max(group, key=lambda run: run.pictures)
    points: dict[float, float] = {run.flop: run.loss}
    if run.steps:
        kept = {step: loss for step, loss in run.curve.items() if _SKIPPED * run.steps <= step < run.steps}
        points |= {run.flop * step / run.steps: loss for step, loss in kept.items()}
    flops = sorted(points)
    relative = np.append(1.0, column_of[id(run)] / run.loss)
    return _Line(np.log(flops), np.asarray([points[flop] for flop in flops])[:, None] * relative)


def _levels(lines: list[_Line]) -> np.ndarray:
    """Spreads log FLOP evenly over what LEAST_SIZES sizes reach at once."""
    grid = np.linspace(min(line.log_flop[0] for line in lines), max(line.log_flop[-1] for line in lines), 400)
    reached = grid[np.sum([line.covers(grid) for line in lines], axis=0) >= LEAST_SIZES]
    if not len(reached):
        return reached
    return reached[np.unique(np.linspace(0, len(reached) - 1, LEVELS).round().astype(int))]


def _parabola(groups: list[list[Run]], lines: list[_Line], level: float) -> tuple[Parabola, np.ndarray]:
    """Fits the parabola; gives it and the minimum's N in the resampled tables, NaN where there is none."""
    chosen = [(group, line) for group, line in zip(groups, lines, strict=True) if line.covers(level)]
    losses = np.stack(
        [
            PchipInterpolator(line.log_flop, line.losses)(np.clip(level, line.log_flop[0], line.log_flop[-1]))
            for _, line in chosen
        ]
    )
    parameters = tuple(group[0].parameters for group, _ in chosen)
    centre = float(np.exp(np.log(parameters).mean()))
    square, slope, height = np.polyfit(np.log(parameters) - np.log(centre), losses, 2)
    with np.errstate(all="ignore"):
        lowest_at = np.where(square > 0, -slope / (2 * square), np.nan)
        # A nearly straight line has its minimum anywhere.
        minima = centre * np.exp(np.where(np.abs(lowest_at) < 50, lowest_at, np.nan))
    has_minimum = bool(np.isfinite(minima[0]))
    place = "below" if minima[0] < parameters[0] else "above" if minima[0] > parameters[-1] else "inside"
    parabola = Parabola(
        flop=float(np.exp(level)),
        sizes=tuple(group[0].size for group, _ in chosen),
        parameters=parameters,
        losses=tuple(float(loss) for loss in losses[:, 0]),
        coefficients=(float(square[0]), float(slope[0]), float(height[0])),
        centre=centre,
        minimum=float(minima[0]) if has_minimum else None,
        minimum_interval=interval(minima[1:]) if has_minimum else None,
        lowest=float(height[0] - slope[0] ** 2 / (4 * square[0])) if has_minimum else None,
        place=place if has_minimum else "none",
    )
    return parabola, minima[1:]
