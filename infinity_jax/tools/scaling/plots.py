"""The figures of a scaling report. Solid lines lie where there are runs; dashed ones are extrapolated."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from infinity_jax.tools.scaling.analysis import Analysis
from infinity_jax.tools.scaling.checks import PAPER, plain_name
from infinity_jax.tools.scaling.frontier import levels, outside
from infinity_jax.tools.scaling.law import PERCENT
from infinity_jax.tools.scaling.runs import Run, column, sizes

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "infinity-jax",  # or the names inside an SVG would differ from run to run
}
LOSS = "validation loss (nats a bit)"
PARAMETERS = "parameters N"
PICTURES = "pictures seen D"
FLOP = "training FLOP C"
# How far beyond the runs the law is drawn.
_BEYOND = 4
_MEASURED = Line2D([], [], color="0.3", marker="o", linestyle="")


def figures(analysis: Analysis) -> dict[str, Figure]:
    """Draws all figures, by name; those for which the table has nothing are left out."""
    with matplotlib.rc_context(STYLE):
        found = {}
        if all(run.steps for run in analysis.runs):
            found["loss_steps"] = _curves(analysis, by_flop=False)
        found["loss_flop"] = _curves(analysis, by_flop=True)
        found["law"] = _law(analysis)
        found["residuals"] = _residuals(analysis)
        if analysis.isoflop.parabolas:
            found["isoflop"] = _isoflop(analysis)
        if np.isfinite(analysis.frontier.G):
            found["frontier"] = _frontier(analysis)
        if any(found.pearson is not None for found in analysis.correlations):
            found["metrics"] = _metrics(analysis)
        return found


def _coloured(runs: Sequence[Run]) -> list[tuple[list[Run], tuple[float, float, float, float]]]:
    """Groups runs by size, each with a colour from dark to light but not too light to read."""
    groups = sizes(runs)
    return [
        (group, matplotlib.colormaps["viridis"](x))
        for group, x in zip(groups, np.linspace(0, 0.88, len(groups)), strict=True)
    ]


def _axes(
    columns: int = 1, rows: int = 1, width: float = 6.4, height: float = 4.2
) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, np.asarray(figure.subplots(rows, columns, squeeze=False))


def _label(axes: Axes, x: str, y: str) -> None:
    """Names the axes, x in logs; of all but FLOP the ticks read "30k", "100k"."""
    axes.set(xscale="log", xlabel=x, ylabel=y)
    if x != FLOP:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _sizes_legend(axes: Axes, runs: Sequence[Run], extra: Mapping[str, Line2D]) -> None:
    """Lists sizes, largest loss on top as in the figure, then the kinds of lines."""
    lines = {group[0].size: Line2D([], [], color=colour) for group, colour in _coloured(runs)} | {**extra}
    axes.legend(list(lines.values()), list(lines), loc="center left", bbox_to_anchor=(1.0, 0.5), title="size")


def _curves(analysis: Analysis, by_flop: bool) -> Figure:
    """Draws the loss during and at the end of each run, one colour a size (the paper's Fig. 10)."""
    figure, ((axes,),) = _axes()
    for group, colour in _coloured(analysis.runs):
        scale = [run.flop / (run.steps or 1) if by_flop else 1 for run in group]
        ends = [run.flop if by_flop else run.steps for run in group]
        for run, x in zip(group, scale, strict=True):
            if run.curve and run.steps:
                axes.plot(
                    x * np.asarray(list(run.curve)), list(run.curve.values()), color=colour, lw=1, alpha=0.55
                )
        axes.plot(ends, column(group, "loss"), "o-", color=colour, lw=1.4, ms=4.5, mec="white", mew=0.5)
    losses = column(analysis.runs, "loss")
    started = [loss for run in analysis.runs for loss in run.curve.values()]
    top = min(losses.max() + 0.6 * np.ptp(losses), max([losses.max() + 0.05 * np.ptp(losses), *started]))
    axes.set_ylim(losses.min() - 0.05 * np.ptp(losses), top)
    _label(axes, FLOP if by_flop else "training steps", LOSS)
    extra = {"ends of runs": _MEASURED}
    if started:
        extra["during a run"] = Line2D([], [], color="0.3", lw=1, alpha=0.55)
    _sizes_legend(axes, analysis.runs, extra)
    return figure


def _law(analysis: Analysis) -> Figure:
    """Draws the fitted law beside the ends of runs, along D and along N, dashed beyond the runs."""
    figure, (row,) = _axes(2, width=10.5)
    runs = analysis.runs
    law = analysis.fit.law
    pictures, parameters = column(runs, "pictures"), column(runs, "parameters")
    for group, colour in _coloured(analysis.runs):
        x = _range(pictures)
        _solid_and_dashed(row[0], x, law.loss(group[0].parameters, x), pictures, colour)
        _dots(row[0], column(group, "pictures"), column(group, "loss"), colour)
        _dots(row[1], column(group, "parameters"), column(group, "loss"), colour)
    shades = np.linspace(0.65, 0.15, len(np.unique(pictures)))
    for seen, shade in zip(np.unique(pictures), shades, strict=True):
        x = _range(parameters)
        y = law.loss(x, seen)
        _solid_and_dashed(row[1], x, y, parameters, str(shade))
        row[1].annotate(
            f"D = {short(seen)}", (x[-1], y[-1]), (4, 0), textcoords="offset points", fontsize=8, va="center"
        )
    for axes, label in zip(row, (PICTURES, PARAMETERS), strict=True):
        axes.axhline(law.E, color="0.5", lw=1, ls=":")
        axes.annotate(f"E = {law.E:.3g}", (0.99, law.E), (0, 3), xycoords=("axes fraction", "data"),
                      textcoords="offset points", ha="right", fontsize=9, color="0.35")  # fmt: skip
        _label(axes, label, LOSS)
    # Room for the lines' names; on the axis in logs, or the left end would stay where it was without.
    row[1].set_xlim(right=3.5 * _BEYOND * parameters.max())
    extra = {
        "measured": _MEASURED,
        "law": Line2D([], [], color="0.3"),
        "extrapolated": Line2D([], [], color="0.3", ls="--"),
    }
    _sizes_legend(row[1], runs, extra)
    return figure


def _range(values: np.ndarray) -> np.ndarray:
    return np.geomspace(values.min() / 1.3, values.max() * _BEYOND, 120)


def _dots(axes: Axes, x: Any, y: Any, colour: Any) -> None:
    axes.plot(x, y, "o", color=colour, ms=5, mec="white", mew=0.5)


def _solid_and_dashed(axes: Axes, x: np.ndarray, y: np.ndarray, measured: np.ndarray, colour: Any) -> None:
    """Draws a solid line between the least and the greatest measured value, a dashed one beyond."""
    inside = (measured.min() * (1 - 1e-6) <= x) & (x <= measured.max() * (1 + 1e-6))
    axes.plot(x, y, ls="--", lw=1, color=colour)
    axes.plot(np.where(inside, x, np.nan), y, lw=1.6, color=colour)


def _residuals(analysis: Analysis) -> Figure:
    """Draws measured over fitted loss against N and against D, the held-out run marked."""
    figure, (row,) = _axes(2, width=10.5, height=3.6)
    runs = analysis.runs
    percent = 100 * np.expm1(analysis.fit.residuals_n)
    for axes, name, label in zip(row, ("parameters", "pictures"), (PARAMETERS, PICTURES), strict=True):
        axes.axhline(0, color="0.4", lw=1)
        for group, colour in _coloured(analysis.runs):
            chosen = [i for i, run in enumerate(runs) if run in group]
            _dots(axes, column(runs, name)[chosen], percent[chosen], colour)
        check = analysis.held_out
        if check is not None:
            apart = 100 * (check.measured / check.predicted - 1)
            axes.plot(getattr(check, name), apart, "x", color="crimson", ms=8, mew=1.8)
        _label(axes, label, "measured over fitted loss, %")
    extra = {"fitted": _MEASURED}
    if analysis.held_out is not None:
        extra["held out"] = Line2D([], [], color="crimson", marker="x", linestyle="", ms=8, mew=1.8)
    _sizes_legend(row[1], runs, extra)
    return figure


def _isoflop(analysis: Analysis) -> Figure:
    """Draws loss against N at equal FLOP, the parabolas and their minima."""
    figure, ((axes,),) = _axes()
    found = analysis.isoflop.parabolas
    colours = [matplotlib.colormaps["plasma"](x) for x in np.linspace(0, 0.82, len(found))]
    for parabola, colour in zip(found, colours, strict=True):
        measured = np.asarray(parabola.parameters, float)
        _dots(axes, measured, parabola.losses, colour)
        x = np.geomspace(measured.min() / 1.5, measured.max() * 1.5, 120)
        y = np.polyval(parabola.coefficients, np.log(x / parabola.centre))
        _solid_and_dashed(axes, x, y, measured, colour)
        if parabola.place == "inside":
            axes.plot(parabola.minimum, parabola.lowest, "*", color=colour, ms=12, mec="white", mew=0.6)
    handles = [
        *(Line2D([], [], color=colour) for colour in colours),
        _MEASURED,
        Line2D([], [], color="0.3", marker="*", ms=11, linestyle=""),
        Line2D([], [], color="0.3", ls="--"),
    ]
    labels = [*(f"{parabola.flop:.2g}" for parabola in found), "interpolated", "minimum", "beyond the sizes"]
    axes.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5), title="FLOP")
    _label(axes, PARAMETERS, LOSS)
    return figure


def _frontier(analysis: Analysis) -> Figure:
    """Draws N_opt and D_opt against FLOP, from the law with its interval and from the parabolas."""
    figure, (row,) = _axes(2, width=10.5)
    runs, flop, frontier = analysis.runs, levels(analysis.runs), analysis.frontier
    best_places = zip(frontier.parameters(flop), frontier.pictures(flop), flop, strict=True)
    inside = [not outside(runs, *place) for place in best_places]
    for axes, name, label in zip(row, ("parameters", "pictures"), (PARAMETERS, PICTURES), strict=True):
        best = getattr(frontier, name)(flop)
        sampled = np.stack([getattr(analysis.frontier_samples, name)(level) for level in flop], axis=1)
        usable = sampled[np.isfinite(sampled).all(axis=1)]
        if len(usable) >= 0.9 * len(sampled):
            band = np.percentile(usable, (50 - PERCENT / 2, 50 + PERCENT / 2), axis=0)
            axes.fill_between(flop, *band, color="tab:blue", alpha=0.15, lw=0)
        axes.plot(flop, best, ls="--", lw=1.2, color="tab:blue")
        axes.plot(np.where(inside, flop, np.nan), best, lw=2, color="tab:blue")
        axes.plot(column(runs, "flop"), column(runs, name), "o", color="0.6", ms=4)
        for parabola in analysis.isoflop.parabolas:
            if parabola.place != "inside":
                continue
            y = parabola.minimum
            if name == "pictures":
                y = analysis.cost.pictures(y, parabola.flop)
            axes.plot(parabola.flop, y, "*", color="tab:orange", ms=12, mec="white", mew=0.6)
        _label(axes, FLOP, f"compute-optimal {label}")
        axes.set_yscale("log")
    handles = {
        "law": Line2D([], [], color="tab:blue", lw=2),
        "extrapolated": Line2D([], [], color="tab:blue", ls="--"),
        f"{PERCENT}% interval": Line2D([], [], color="tab:blue", alpha=0.3, lw=7),
        "runs": Line2D([], [], color="0.6", marker="o", ms=4, linestyle=""),
    }
    if any(parabola.place == "inside" for parabola in analysis.isoflop.parabolas):
        handles["IsoFLOP minima"] = Line2D([], [], color="tab:orange", marker="*", ms=11, linestyle="")
    row[1].legend(list(handles.values()), list(handles), loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _metrics(analysis: Analysis) -> Figure:
    """Draws each metric against the validation loss, with the line of least squares and Pearson's r."""
    shown = [found for found in analysis.correlations if found.pearson is not None]
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure, grid = _axes(columns, rows, width=1.4 + 3.4 * columns, height=0.4 + 3.1 * rows)
    for axes, found in zip(grid.flat, shown, strict=False):
        for group, colour in _coloured(analysis.runs):
            having = [run for run in group if found.metric in run.metrics]
            values = [run.metrics[found.metric] for run in having]
            _dots(axes, column(having, "loss"), values, colour)
        runs = [run for run in analysis.runs if found.metric in run.metrics]
        loss, values = column(runs, "loss"), np.asarray([run.metrics[found.metric] for run in runs])
        ends = np.asarray([loss.min(), loss.max()])
        axes.plot(ends, np.polyval(np.polyfit(loss, values, 1), ends), color="0.4", lw=1)
        better = "lower" if found.lower_is_better else "higher"
        axes.set(xlabel=LOSS, ylabel=f"{title(found.metric)} ({better} is better)")
        axes.locator_params(axis="x", nbins=5)
        axes.set_title(f"r = {found.pearson:.3f}", fontsize=10)
    for axes in list(grid.flat)[len(shown) :]:
        axes.set_axis_off()
    _sizes_legend(grid[0, -1], analysis.runs, {})
    return figure


_TITLES = {
    "kid": "EffNet-KID",
    "retrievaltop1": "retrieval, top 1",
    "retrievaltop5": "retrieval, top 5",
    "retrievalcompositionstop1": "unseen, top 1",
} | {name: title for name, (title, _) in PAPER.items()}


def title(metric: str) -> str:
    """Makes a metric's name readable: "metric_image_reward" -> "ImageReward"."""
    return _TITLES.get(plain_name(metric), metric.removeprefix("metric_").replace("_", " "))


def short(value: float | int) -> str:
    """Shortens a number: 9600 -> "9.6k", 1.2e7 -> "12M", 2e9 -> "2B"."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
