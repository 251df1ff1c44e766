"""Which rows of a table are fitted: the ends of finished runs, each vocabulary apart."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from infinity_jax.errors import UserError
from infinity_jax.tools.scaling import table

NEEDED = ("parameters", "pictures", "flop")
# The law has five constants; its exponents need a bend along both axes.
LEAST_RUNS, LEAST_VALUES = 6, 3


@dataclasses.dataclass(frozen=True)
class Run:
    """The end of a finished run.

    Attributes:
      parameters, pictures, flop: N, D (pictures seen) and C (FLOP of the whole training, by formula).
      loss: validation, nats a bit.
      steps: None where the table has none.
      curve: {step: validation loss} during the run; never fitted, as its points are not independent of the end.
      constant_rate: whether the learning rate stays as it is, so that a point of the curve is the end of a shorter run.
      metrics: of generated pictures.
    """

    name: str
    size: str
    parameters: int
    pictures: int
    flop: int
    loss: float
    steps: int | None
    curve: Mapping[int, float]
    constant_rate: bool
    metrics: Mapping[str, float]


def select(rows: list[dict[str, Any]], where: str) -> tuple[dict[str, list[Run]], list[str]]:
    """Groups the runs by vocabulary ("" where rows name none), fewest parameters and pictures first; adds warnings.

    Args:
      rows: of `table.read`.
      where: the table's name, for messages.
    Raises:
      UserError: no run is done, one lacks a number, or a run is there twice.
    """
    metrics = table.metric_columns(rows)
    done = [row for row in rows if row["status"] == "done"]
    finite = [row for row in done if _is_finite(row["validation_loss"])]
    if not finite:
        raise UserError(f"{where} has no row with status done and a validation loss, {_others(rows, finite)}")
    names: set[str] = set()
    runs: dict[str, list[Run]] = {}
    for row in finite:
        if missing := [column for column in NEEDED if row[column] is None]:
            raise UserError(
                f"{where}: the done run {row['name']!r} has no {', no '.join(missing)}; fill it in"
            )
        if row["validation_loss"] <= 0:
            raise UserError(
                f"{where}: {row['name']!r} has validation_loss {row['validation_loss']}, not above 0"
            )
        if row["name"] in names:
            raise UserError(
                f"{where} has the run {row['name']!r} twice; remove one row, or give it its own name"
            )
        names.add(row["name"])
        runs.setdefault(row["vocabulary"] or "", []).append(_run(row, metrics))
    for group in runs.values():
        group.sort(key=lambda run: (run.parameters, run.pictures, run.name))
    warnings = [f"left out: {_others(rows, finite)}"] if len(finite) < len(rows) else []
    return runs, warnings


def shortage(runs: Iterable[Run]) -> str | None:
    """Says why these runs are too few to fit the law; None if they are enough."""
    runs = list(runs)
    short = []
    if len(runs) < LEAST_RUNS:
        short.append(f"{LEAST_RUNS} finished runs are needed and there are {len(runs)}")
    for name, what in (("parameters", "numbers of parameters"), ("pictures", "numbers of pictures seen")):
        values = {getattr(run, name) for run in runs}
        if len(values) < LEAST_VALUES:
            found = ", ".join(f"{value:,}" for value in sorted(values))
            short.append(f"{LEAST_VALUES} different {what} are needed and the runs have only {found}")
    return "; ".join(short) or None


def sizes(runs: Iterable[Run]) -> list[list[Run]]:
    """Groups the runs by number of parameters, smallest first."""
    ordered = sorted(runs, key=lambda run: (run.parameters, run.pictures))
    return [list(group) for _, group in itertools.groupby(ordered, key=lambda run: run.parameters)]


def column(runs: Iterable[Run], name: str) -> np.ndarray:
    """Collects one attribute of all runs, float64 [n]."""
    return np.asarray([getattr(run, name) for run in runs], float)


def _run(row: Mapping[str, Any], metrics: tuple[str, ...]) -> Run:
    curve = row["validation_curve"] or {}
    return Run(
        name=row["name"] or "",
        size=row["size"] or f"{row['parameters']:,}",
        parameters=row["parameters"],
        pictures=row["pictures"],
        flop=row["flop"],
        loss=row["validation_loss"],
        steps=row["steps"],
        curve={step: loss for step, loss in sorted(curve.items()) if step > 0 and _is_finite(loss)},
        constant_rate=row["rate_schedule"] == "constant",
        metrics={name: row[name] for name in metrics if _is_finite(row.get(name))},
    )


def _is_finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _others(rows: list[dict[str, Any]], used: list[dict[str, Any]]) -> str:
    """Names the rows that are not used, by what they lack."""
    kinds: dict[str, list[str]] = {}
    for row in rows:
        if not any(row is other for other in used):
            kind = "done, but without a finite loss" if row["status"] == "done" else row["status"]
            kinds.setdefault(kind, []).append(row["name"] or "a row without a name")
    text = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items())
    return (text or "and no rows at all") + ("" if used else "; let `infinity-jax sweep` finish some")
