"""What was found, as plain values for fit.json."""

import dataclasses
from typing import Any

import numpy as np

from infinity_jax.scaling.analysis import Analysis
from infinity_jax.scaling.correlation import PAPER
from infinity_jax.scaling.frontier import levels, outside
from infinity_jax.scaling.isoflop import LEAST_SIZES
from infinity_jax.scaling.law import PERCENT, interval
from infinity_jax.scaling.runs import column

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
    """Constants, intervals, checks and predictions of one vocabulary; all that is not finite is None."""
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
        "runs": _runs(analysis),
        "held_out": _held_out(analysis),
        "cost": dataclasses.asdict(analysis.cost),
        "frontier": _frontier(analysis),
        "isoflop": dataclasses.asdict(analysis.isoflop),
        "correlations": [dataclasses.asdict(found) for found in analysis.correlations],
    }


def _terms(analysis: Analysis) -> dict[str, Any]:
    """The law's terms in the middle of the runs: A and B alone swing with their exponents."""
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


def _runs(analysis: Analysis) -> list[dict[str, Any]]:
    fit = analysis.fit
    return [
        {
            "name": run.name,
            "size": run.size,
            "parameters": run.parameters,
            "pictures": run.pictures,
            "flop": run.flop,
            "loss": run.loss,
            "fitted": float(fitted),
            "log_residual": float(residual),
        }
        for run, fitted, residual in zip(analysis.runs, fit.fitted_n, fit.residuals_n, strict=True)
    ]


def _held_out(analysis: Analysis) -> dict[str, Any] | None:
    found = analysis.held_out
    if found is None:
        return None
    return {
        "run": found.run.name,
        "parameters": found.run.parameters,
        "pictures": found.run.pictures,
        "flop": found.run.flop,
        "runs_left_out": found.without,
        "measured": found.measured,
        "predicted": found.predicted,
        "interval": found.interval,
        "relative_error": found.error,
        "outside": found.outside,
        "constants": dataclasses.asdict(found.law),
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
    points = [_point(analysis, float(flop)) for flop in levels(analysis.runs)]
    return {
        "form": "N_opt = G (C / kappa)^size_exponent, D_opt = G^-gamma (C / kappa)^data_exponent, C = kappa N^gamma D",
        **closed,
        "points": points,
    }


def _point(analysis: Analysis, flop: float) -> dict[str, Any]:
    """The optimum for one FLOP."""
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
