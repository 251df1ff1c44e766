"""`infinity-jax ablate`: a grid whose axis `compare` is set side by side, beside what the paper reports."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from matplotlib.figure import Figure
from scipy import stats

from infinity_jax.checkpoints.keeping import lower_is_better
from infinity_jax.errors import UserError
from infinity_jax.files import atomic
from infinity_jax.tools.scaling import grid, plots, sweep

CONFIDENCE = 0.95
# Columns of which less is better, besides those that `lower_is_better` knows by name.
_COSTS = ("parameters", "flop", "memory", "seconds")
Rows = Sequence[Mapping[str, Any]]


def main(
    path: str, overrides: Sequence[str], workdir: str | Path, only: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Runs the grid's cells that are missing, then writes the comparison of those that are done.

    Args:
      path, overrides: the config file and its changes; see `grid.GridConfig`.
      workdir: gets what a sweep writes, and table.md, table.json, comparison.png.
      only: numbers of the cells to run, from 0; None is all.
    Returns:
      what table.json holds, see `compare`.
    Raises:
      UserError: as `sweep.run`; the config says nothing to compare.
    """
    config, _ = grid.load(path, overrides, str(workdir))
    if not config.compare or not config.columns:
        raise UserError(f"{path} has no `compare` and `columns`; it is for infinity-jax sweep")
    rows = [row for row in sweep.run(path, overrides, workdir, only) if row["status"] == "done"]
    if not rows:
        return []
    compared = compare(rows, config)
    atomic.write_json(Path(workdir) / "table.json", compared)
    text = markdown(compared, config)
    atomic.write_text(Path(workdir) / "table.md", text)
    draw(compared, config, Path(workdir) / "comparison.png")
    logging.info("%s", text)
    return compared


def compare(rows: Rows, config: grid.GridConfig) -> list[dict[str, Any]]:
    """Compares the labels of an axis: mean of each column, and its difference to the first label.

    Returns:
      for each label with finished rows {"label", "runs", "paper", and each column: {"values", "mean", "interval",
      "difference", "difference_interval"}}. Intervals are half widths of Student's 95% interval of the mean over the
      repetitions, None of one alone; differences are taken between cells that are alike in all other axes. A column
      that no run has, like those of pictures where none were drawn, has no values and the mean None.
    """
    axes = [axis for axis in config.axes if axis != config.compare]
    labels = [str(text).partition(":")[0] for text in config.axes[config.compare]]
    by_label = {label: [row for row in rows if row[config.compare] == label] for label in labels}

    def alike(row: Mapping[str, Any]) -> tuple:
        return tuple(str(row[axis]) for axis in axes)

    first = {alike(row): row for row in by_label[labels[0]]}
    compared = []
    for number, (label, own) in enumerate(by_label.items()):
        if not own:
            continue
        entry: dict[str, Any] = {"label": label, "runs": len(own)}
        entry["paper"] = config.paper[number] if number < len(config.paper) else ""
        for column in config.columns:
            values = [row[column] for row in own if row.get(column) is not None]
            pairs = [(row.get(column), first.get(alike(row), {}).get(column)) for row in own]
            differences = [a - b for a, b in pairs if a is not None and b is not None] if number else []
            entry[column] = {"values": values} | _interval("", values) | _interval("difference", differences)
        compared.append(entry)
    return compared


def _interval(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Computes mean and half width of its interval, as {NAME or "mean", NAME_interval}."""
    mean, n = (float(np.mean(values)) if values else None), len(values)
    half = None
    if n > 1:
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
    return {name or "mean": mean, f"{name}_interval" if name else "interval": half}


def markdown(compared: Sequence[Mapping[str, Any]], config: grid.GridConfig) -> str:
    """Writes the comparison as a table: mean ± interval, the best of each column in bold.

    A star is where it differs surely from the first row.
    """
    head = [config.compare, "runs", *config.columns, *([f"paper, {config.source}"] if config.paper else [])]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    best = {column: _best(column, [entry[column]["mean"] for entry in compared]) for column in config.columns}
    for entry in compared:
        cells = [_cell(entry[column], best[column]) for column in config.columns]
        paper = [entry["paper"]] if config.paper else []
        lines.append(f"| {' | '.join([entry['label'], str(entry['runs']), *cells, *paper])} |")
    lines.append("")
    lines.append(
        "Mean ± half the 95% interval (Student) over the runs. Bold: the best of its column. A star: the difference to "
        "the first row, between runs that are otherwise alike, has an interval without 0."
    )
    return "\n".join(lines) + "\n"


def _best(column: str, means: Sequence[float | None]) -> float | None:
    """Finds the best mean of a column; None where all are alike."""
    known = {mean for mean in means if mean is not None}
    if len(known) < 2:
        return None
    return min(known) if column in _COSTS or lower_is_better(column) else max(known)


def _cell(numbers: Mapping[str, Any], best: float | None) -> str:
    if numbers["mean"] is None:
        return "-"
    text = f"{numbers['mean']:.4g}"
    if numbers["interval"] is not None:
        text += f" ± {numbers['interval']:.2g}"
    half = numbers["difference_interval"]
    text = f"**{text}**" if numbers["mean"] == best else text
    return f"{text} \\*" if half is not None and abs(numbers["difference"]) > half else text


def draw(compared: Sequence[Mapping[str, Any]], config: grid.GridConfig, file: Path) -> None:
    """Draws a panel for each column: every run a point, the mean a line, the interval a bar."""
    columns = config.columns
    labels, places = [entry["label"] for entry in compared], np.arange(len(compared))
    figure = Figure(figsize=(3.2 * len(columns), 0.42 * len(compared) + 1.1))
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)
    for panel, column in zip(panels[0], columns, strict=True):
        for place, entry in zip(places, compared, strict=True):
            numbers = entry[column]
            if numbers["mean"] is None:
                continue
            panel.errorbar(
                numbers["mean"], place, xerr=numbers["interval"] or 0, fmt="|", color="black", capsize=4
            )
            panel.plot(numbers["values"], [place] * len(numbers["values"]), "o", color="tab:blue", alpha=0.6)
        panel.set_xlabel(plots.title(column))
        panel.grid(axis="x", alpha=0.3)
        panel.locator_params(axis="x", nbins=4)
    panels[0][0].set_yticks(places, labels)
    panels[0][0].set_ylim(len(compared) - 0.5, -0.5)
    figure.tight_layout()
    figure.savefig(file, dpi=140)
