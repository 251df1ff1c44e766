"""All that is found in the runs of one vocabulary."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from infinity_jax.tools.scaling import law as law_module
from infinity_jax.tools.scaling.checks import PAPER, Correlation, HeldOut, correlations, held_out
from infinity_jax.tools.scaling.frontier import Cost, Frontier, cost_of, frontier_of, levels, outside
from infinity_jax.tools.scaling.isoflop import LEAST_SIZES, IsoFlop, isoflop
from infinity_jax.tools.scaling.law import EXPONENTS, PERCENT, Fit, interval
from infinity_jax.tools.scaling.runs import Run, column, sizes

# An exponent is taken for hardly determined where its interval's ends are further apart than this factor.
_WIDE = 3
_SPREAD = 0.05


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Runs of one vocabulary ("" if the table names none) and all that was fitted to them.

    Attributes:
      frontier, frontier_samples: in closed form, of the law and of each resampled law.
      held_out: None where the other runs are too few.
      warnings: what a reader must know before believing the numbers, one sentence each.
    """

    vocabulary: str
    runs: Sequence[Run]
    fit: Fit
    held_out: HeldOut | None
    cost: Cost
    frontier: Frontier
    frontier_samples: Frontier
    isoflop: IsoFlop
    correlations: Sequence[Correlation]
    warnings: Sequence[str]


def analyse(
    vocabulary: str, runs: Sequence[Run], seed: int, resamples: int = law_module.RESAMPLES
) -> Analysis:
    """Fits and checks everything; the runs must not be too few (`runs.shortage`)."""
    losses = column(runs, "loss")
    fit = law_module.fit(column(runs, "parameters"), column(runs, "pictures"), losses, seed, resamples)
    cost = cost_of(runs)
    check, parabolas = held_out(runs, seed, resamples), isoflop(runs, fit.losses_Rn)
    return Analysis(
        vocabulary=vocabulary,
        runs=runs,
        fit=fit,
        held_out=check,
        cost=cost,
        frontier=frontier_of(fit.law, cost),
        frontier_samples=frontier_of(fit.samples, cost),
        isoflop=parabolas,
        correlations=correlations(runs),
        warnings=[
            *_warnings_about_law(fit, runs),
            *_warnings_about_cost(cost),
            *_warnings_about_held_out(check),
            *_warnings_about_parabolas(parabolas),
        ],
    )


def _warnings_about_law(fit: Fit, runs: Sequence[Run]) -> list[str]:
    law, samples = fit.law, fit.samples
    warnings = [
        f"{letter} = 0: the loss does not fall with {what} in these runs, and there is no frontier"
        for letter, what in (("A", "parameters"), ("B", "pictures"))
        if getattr(law, letter) == 0
    ]
    if law.E == 0:
        warnings.append("E = 0, its bound: these runs do not show where the loss would level off")
    elif np.percentile(samples.E, 50 - PERCENT / 2) < 1e-3 * column(runs, "loss").min():
        warnings.append("E cannot be told from 0: its interval reaches the bound")
    for name, term in (("a", law.A), ("b", law.B)):
        if term > 0:
            warnings += _warnings_about_exponent(name, getattr(law, name), getattr(samples, name))
    for what, name, letter in (("parameters", "parameters", "a"), ("pictures seen", "pictures", "b")):
        if len({getattr(run, name) for run in runs}) == 3:
            warnings.append(
                f"only 3 numbers of {what}: the bend along them, and with it {letter}, rests on three points"
            )
    if len(sizes(runs)) > 3 and fit.sigma <= 1e-5:
        warnings.append("the residuals are those of rounding: the intervals say nothing of noise")
    outliers = [
        run.name for run, r in zip(runs, fit.residuals_n, strict=True) if abs(r) > max(5 * fit.sigma, 0.02)
    ]
    if outliers:
        warnings.append(f"far from the law, and weighted less in the fit: {', '.join(outliers)}")
    return warnings


def _warnings_about_exponent(name: str, value: float, samples: Any) -> list[str]:
    low, high = EXPONENTS
    if value < low * 1.01 or value > high * 0.99:
        return [f"{name} = {value:.3g} is at the bound of the search, {low} to {high}: it is not determined"]
    ends = interval(samples)
    if ends is None or ends[1] > _WIDE * ends[0]:
        text = "none" if ends is None else f"{ends[0]:.2g} to {ends[1]:.2g}"
        return [f"{name} is hardly determined: its interval is {text}"]
    return []


def _warnings_about_cost(cost: Cost) -> list[str]:
    warnings = []
    if cost.gamma <= 0:
        warnings.append(f"FLOP a picture do not grow with N (gamma {cost.gamma:.3g}): there is no frontier")
    if cost.spread > _SPREAD:
        warnings.append(
            f"FLOP are up to {cost.spread:.0%} away from kappa N^gamma D, so the frontier is rough; do the runs differ"
            " in tokens a picture, or in their form?"
        )
    return warnings


def _warnings_about_held_out(check: HeldOut | None) -> list[str]:
    if check is None:
        return ["no run was held out: without the largest there would be too few"]
    if check.interval is None or not check.interval[0] <= check.measured <= check.interval[1]:
        return [
            f"the held-out run {check.run} lies outside the interval predicted for it ({check.relative_error:+.1%}):"
            " extrapolate with care"
        ]
    return []


def _warnings_about_parabolas(found: IsoFlop) -> list[str]:
    if not found.parabolas:
        return [f"no IsoFLOP parabolas: no FLOP is reached by {LEAST_SIZES} sizes; spread the lengths wider"]
    warnings = []
    if found.source == "curves":
        warnings.append(
            "IsoFLOP losses come from the curves of the longest runs; where the rate falls during a run, a point of its"
            " curve lies above what a run of that length would reach, so the minima lean to small sizes"
        )
    away = [parabola for parabola in found.parabolas if parabola.place != "inside"]
    if away:
        warnings.append(
            f"{len(away)} of {len(found.parabolas)} IsoFLOP parabolas have no minimum inside the measured sizes; "
            "they are marked and not used for an exponent"
        )
    return warnings


METHOD = {
    "law": "L = E + A / N^a + B / D^b; L validation loss in nats a bit, N parameters, D pictures seen",
    "fit": "Huber's loss of relative residuals (about those of log L), 1.345 robust standard deviations wide;"
    " variable projection: E, A, B >= 0 exactly for given a, b, which are searched from many starts",
    "points": "the end of each finished run; points of a run's curve are not independent of its end and are not fitted",
    "intervals": f"{PERCENT}%, of tables with the same N and D and resampled residuals, each over sqrt(1 - leverage),"
    " scaled by their own uncertainty as in Student's t; a small grid is too small to resample whole runs",
    "not in the intervals": "errors of the law's form, and rates or batches that suit some sizes less than others",
    "outside": "what lies beyond the runs' own range (N, D, or C, the training FLOP): there it is extrapolated",
    "isoflop": f"losses interpolated along log C within each size, a parabola in log N where {LEAST_SIZES} sizes meet",
    "correlation": f"Pearson's, {PERCENT}% intervals by Fisher's transformation",
}
PAPER_FIGURES = dict(PAPER.values())


def describe(analysis: Analysis) -> dict[str, Any]:
    """Collects constants, intervals, checks and predictions of one vocabulary; all that is not finite is None."""
    fit = analysis.fit
    return {
        "vocabulary": analysis.vocabulary or None,
        "rows": len(analysis.runs),
        "warnings": list(analysis.warnings),
        "constants": {
            name: {"value": getattr(fit.law, name), "interval": interval(getattr(fit.samples, name))}
            for name in ("E", "A", "a", "B", "b")
        },
        "terms_at_centre": _terms(analysis),
        "robust_residual": fit.sigma,
        "runs": [
            {name: getattr(run, name) for name in ("name", "size", "parameters", "pictures", "flop", "loss")}
            | {"fitted": float(fitted), "log_residual": float(residual)}
            for run, fitted, residual in zip(analysis.runs, fit.fitted_n, fit.residuals_n, strict=True)
        ],
        "held_out": analysis.held_out and dataclasses.asdict(analysis.held_out),
        "cost": dataclasses.asdict(analysis.cost),
        "frontier": _frontier(analysis),
        "isoflop": dataclasses.asdict(analysis.isoflop),
        "correlations": [dataclasses.asdict(found) for found in analysis.correlations],
    }


def _terms(analysis: Analysis) -> dict[str, Any]:
    """Evaluates the law's terms in the middle of the runs: A and B alone swing with their exponents."""
    law, samples = analysis.fit.law, analysis.fit.samples
    parameters, pictures = (
        float(np.exp(np.log(column(analysis.runs, name)).mean())) for name in ("parameters", "pictures")
    )
    size, data = law.size_term(parameters), law.data_term(pictures)
    return {
        "parameters": parameters,
        "pictures": pictures,
        "A / N^a": {"value": float(size), "interval": interval(samples.size_term(parameters))},
        "B / D^b": {"value": float(data), "interval": interval(samples.data_term(pictures))},
    }


def _frontier(analysis: Analysis) -> dict[str, Any] | None:
    best, samples = analysis.frontier, analysis.frontier_samples
    if not np.isfinite(best.G):
        return None
    closed = {
        name: {
            "value": float(getattr(best, name)),
            "interval": interval(np.where(np.isfinite(samples.G), getattr(samples, name), np.nan)),
        }
        for name in ("G", "size_exponent", "data_exponent")
    }
    return {
        "form": "N_opt = G (C / kappa)^size_exponent, D_opt = G^-gamma (C / kappa)^data_exponent, C = kappa N^gamma D",
        **closed,
        "points": [_point(analysis, float(flop)) for flop in levels(analysis.runs)],
    }


def _point(analysis: Analysis, flop: float) -> dict[str, Any]:
    """Computes the optimum for one FLOP."""
    law, samples, sampled = analysis.fit.law, analysis.fit.samples, analysis.frontier_samples
    parameters, pictures = float(analysis.frontier.parameters(flop)), float(analysis.frontier.pictures(flop))
    return {
        "flop": flop,
        "parameters": parameters,
        "parameters_interval": interval(sampled.parameters(flop)),
        "pictures": pictures,
        "pictures_interval": interval(sampled.pictures(flop)),
        "loss": float(law.loss(parameters, pictures)),
        "loss_interval": interval(samples.loss(parameters, pictures)),
        "outside": outside(analysis.runs, parameters, pictures, flop),
    }
