"""`infinity-jax sweep`: runs the cells of a grid one after the other, and keeps the table of runs up to date."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from infinity_jax.errors import UserError
from infinity_jax.files import locks
from infinity_jax.runtime import distributed
from infinity_jax.tools.scaling import cells, grid, table
from infinity_jax.tools.scaling.estimate import Estimate, estimate
from infinity_jax.training import train_tokenizer

TABLE = "runs.csv"


def plan(
    path: str, overrides: Sequence[str], workdir: str = "WORKDIR"
) -> tuple[grid.GridConfig, list[Estimate]]:
    """Reads the grid of a config file, and estimates what each cell needs, in the config's order."""
    config, planned = grid.load(path, overrides, workdir)
    return config, [estimate(cell, config.hardware, trains=not config.checkpoint) for cell in planned]


def describe(config: grid.GridConfig, estimates: Sequence[Estimate]) -> str:
    """Writes a line for each cell: parameters, tokens, FLOP, memory, time, and whether it fits."""
    hardware = config.hardware
    width = max(len(e.cell.name) for e in estimates)
    head = ("number", f"{'cell':{width}}", "parameters", "  tokens", "    FLOP", "   memory", "     time")
    lines = ["  ".join(head)]
    for number, e in enumerate(estimates):
        memory = "  unknown" if e.memory is None else f"{e.memory / 2**30:5.2f} GiB"
        lines.append(
            f"{number:6}  {e.cell.name:{width}}  {e.parameters:10.4g}  {e.tokens:8.3g}  {e.flops:8.3g}  {memory}  "
            f"{_hours(e.seconds)}{'' if e.fits else '  DOES NOT FIT'}"
        )
    where = f"{hardware.count} x {hardware.chip}" if hardware.chip else "this machine"
    total = sum((e.seconds for e in estimates if e.fits), 0.0)
    lines.append(
        f"{len(estimates)} cells, {_hours(total).strip()} of training one after the other on {where} at "
        f"{hardware.utilisation:.0%} of its peak rate; memory is that of each device, of "
        f"{estimates[0].available / 2**30:.1f} GiB"
    )
    return "\n".join(lines)


def run(
    path: str, overrides: Sequence[str], workdir: str | Path, only: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Runs what is missing and writes `workdir`/runs.csv after each cell; the same call again goes on.

    A cell that is done is not run again, one that was begun goes on from its checkpoint, one that failed is tried
    again. Of several processes that share `workdir`, each may run other cells.

    Args:
      path, overrides: the config file and its changes.
      workdir: gets cells/NAME/ with a training run each, and the table.
      only: numbers of the cells to run, from 0; None is all.
    Returns:
      the rows of the whole table.
    Raises:
      UserError: a mistake in the config, pictures to draw by several processes, a cell that was begun with another
        config, or cells that failed; what is done is in the table.
    """
    config, estimates = plan(path, overrides, str(workdir))
    workdir = Path(workdir)
    if config.pictures and jax.process_count() > 1:
        # Reading a checkpoint takes all processes, and drawing is the work of one.
        raise UserError(
            f"pictures is {config.pictures}, and several processes cannot draw them; set --config.pictures=0, or run "
            "each cell as one process"
        )
    for number in only or ():
        if not 0 <= number < len(estimates):
            raise UserError(f"there is no cell {number}; this sweep has 0 to {len(estimates) - 1}")
    for e in estimates:
        cells.check_unchanged(workdir, e.cell, config)
    for label, tokenizer in grid.tokenizer_configs(config).items():
        logging.info("tokenizer %s", label)
        _train_tokenizer(tokenizer, workdir / "tokenizers" / label)
    failed: dict[str, str] = {}
    rows = _collect(workdir, estimates)
    for number, e in enumerate(estimates):
        if only is not None and number not in only:
            continue
        if not e.fits:
            logging.info("cell %s does not fit and is left out; --dry-run says what it needs", e.cell.name)
        elif cells.finished_row(workdir, e.cell) is None:
            logging.info("cell %d of %d: %s", number + 1, len(estimates), e.cell.name)
            if (error := _run_alone(workdir, e, config)) is not None:
                failed[e.cell.name] = error
                logging.info("cell %s failed: %s", e.cell.name, error)
        rows = _collect(workdir, estimates)
    if failed:
        name, error = next(iter(failed.items()))
        raise UserError(
            f"{len(failed)} of {len(estimates)} cells failed, the first is {name}: {error}. The others are in "
            f"{workdir / TABLE}; mend it and run the same command again"
        )
    return rows


def _run_alone(workdir: Path, e: Estimate, config: grid.GridConfig) -> str | None:
    """Runs a cell unless another job on this disk is at it; what went wrong, if something did."""
    with contextlib.ExitStack() as held:
        if jax.process_count() == 1:
            try:
                lock = workdir / "cells" / f".{e.cell.name}.lock"
                held.enter_context(locks.alone(lock, f"runs the cell {e.cell.name}", "it is left to that"))
            except locks.Held as error:
                logging.info("%s", error)
                return None
            if cells.finished_row(workdir, e.cell) is not None:
                return None
        try:
            cells.run(workdir, e.cell, config, e)
        except cells.CellFailed as error:
            return str(error)
    return None


def _train_tokenizer(config: Any, workdir: Path) -> None:
    """Trains a tokenizer that all cells share; of several jobs one does, and the others wait for it."""
    lock = locks.alone(workdir.with_name(f".{workdir.name}.lock"), f"trains in {workdir}")
    with contextlib.ExitStack() as held:

        def wait() -> None:
            if jax.process_index() == 0:
                held.enter_context(lock)

        distributed.lead_first(wait)
        train_tokenizer.main(config, workdir)


def _collect(workdir: Path, estimates: Sequence[Estimate]) -> list[dict[str, Any]]:
    """Writes the table of what the cells' folders say now."""
    if jax.process_index() != 0:
        return []
    # Jobs of an array end at any time: each must see the rows of those that wrote the table before.
    with locks.alone(workdir / f".{TABLE}.lock", f"writes {workdir / TABLE}"):
        rows = [cells.row(workdir, e) for e in estimates]
        table.write(workdir / TABLE, rows)
    return rows


def _hours(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:6.0f} s"
    return f"{seconds / 60:6.1f} min" if seconds < 7200 else f"{seconds / 3600:6.1f} h"
