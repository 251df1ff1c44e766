"""One cell of a grid: train, draw, measure, and its row in the table of runs."""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from infinity_jax.checkpoints import origin
from infinity_jax.config import SampleConfig
from infinity_jax.config_files import from_dict
from infinity_jax.errors import UserError
from infinity_jax.files import atomic, reading
from infinity_jax.sampling.pipeline import InfinityPipeline
from infinity_jax.tools.scaling.estimate import Estimate
from infinity_jax.tools.scaling.grid import Cell, GridConfig
from infinity_jax.training import run_log, train_transformer

ROW, CONFIG, FAILURE = "row.json", "config.json", "failure.txt"
_QUALITY = ("kid", "kid_error", "retrieval_top1", "retrieval_top5", "retrieval_compositions_top1")


class CellFailed(Exception):
    """A cell that went wrong in a way that leaves the others alone; the message is one line."""


def folder(workdir: Path, cell: Cell) -> Path:
    """Names where a cell keeps its config, its training run and, when it is done, its row."""
    return workdir / "cells" / cell.name


def finished_row(workdir: Path, cell: Cell) -> dict[str, Any] | None:
    """Reads the row of a cell that is done; None if it is not."""
    path = folder(workdir, cell) / ROW
    return reading.read_object(path, "remove it to run the cell again") if path.exists() else None


def check_unchanged(workdir: Path, cell: Cell, grid: GridConfig) -> None:
    """Raises UserError if the cell was begun with another config: the table would mix two sweeps."""
    path = folder(workdir, cell) / CONFIG
    if not path.exists():
        return
    before = reading.read_object(path, f"remove {path.parent} to run the cell again")
    now = json.loads(json.dumps(_record(cell, grid)))
    # A key that only one of them has came or went with another version of the program.
    changed = sorted(key for key in before.keys() & now.keys() if before[key] != now[key])
    if changed:
        key = changed[0]
        raise UserError(
            f"{path.parent} was begun with {key}={before[key]!r}, and the config now says {now[key]!r}; "
            "use another --workdir, or remove that folder to run the cell again"
        )


def row(workdir: Path, e: Estimate) -> dict[str, Any]:
    """Makes a cell's row of what its folder says now."""
    if (done := finished_row(workdir, e.cell)) is not None:
        return done
    here = folder(workdir, e.cell)
    if (here / FAILURE).exists():
        return e.row() | {"status": "failed", "error": (here / FAILURE).read_text()}
    return e.row() | ({"status": "running"} if here.is_dir() else {})


def run(workdir: Path, cell: Cell, grid: GridConfig, estimate: Estimate) -> None:
    """Runs a cell, or goes on with it, and writes its row, or why it failed.

    Raises:
      CellFailed: its training or its evaluation cannot be done.
    """
    here = folder(workdir, cell)
    if jax.process_index() == 0:
        here.mkdir(parents=True, exist_ok=True)
        atomic.write_json(here / CONFIG, _record(cell, grid))
        (here / FAILURE).unlink(missing_ok=True)
    try:
        checkpoint = grid.checkpoint or str(here / "run")
        if not grid.checkpoint:
            train_transformer.main(cell.config, here / "run")
        # The others write no metrics, and may not yet see the last line of them.
        if jax.process_index() == 0:
            numbers = {} if grid.checkpoint else _trained(here / "run")
            if grid.pictures:
                numbers |= _drawn(checkpoint, cell, grid.pictures)
            numbers |= {"status": "done", "commit": origin.commit()[:12]}
            numbers |= {"device": f"{jax.device_count()} x {jax.devices()[0].device_kind}"}
            atomic.write_json(here / ROW, estimate.row() | numbers)
    except (UserError, MemoryError, jax.errors.JaxRuntimeError) as error:
        message = " ".join(str(error).split())[:300]
        # For the table: it is written again by other jobs, which do not know what went wrong.
        if jax.process_index() == 0:
            atomic.write_text(here / FAILURE, message)
        raise CellFailed(message) from error
    # A program of this cell is of no use to the next one.
    jax.clear_caches()


def _record(cell: Cell, grid: GridConfig) -> dict[str, Any]:
    """Collects what a cell's numbers depend on, by "section.key"."""
    flat = {"checkpoint": grid.checkpoint, "pictures": grid.pictures, "tokenizers": list(grid.tokenizers)}
    for section, values in cell.config.to_dict().items():
        nested = isinstance(values, dict)
        flat |= {f"{section}.{key}": value for key, value in values.items()} if nested else {section: values}
    return flat


def _trained(run: Path) -> dict[str, Any]:
    """Reads what a finished training left in its metrics."""
    needed = {"step", "loss", "seconds_per_step", "images_per_second"}
    lines = [line for line in run_log.read_lines(run / "metrics.jsonl") if needed <= line.keys()]
    if not lines:
        raise UserError(f"{run / 'metrics.jsonl'} has no whole line; remove {run} to run the cell again")
    evaluations = run_log.read_lines(run / "evaluations.jsonl")
    # The first number has the compilation in it, and others may have a pause.
    step = statistics.median(line["seconds_per_step"] for line in lines)
    pictures = statistics.median(line["images_per_second"] for line in lines)
    numbers = {
        "train_loss": lines[-1]["loss"],
        "seconds": round(step * lines[-1]["step"], 1),
        "pictures_per_second": round(pictures, 2),
    }
    if evaluations:
        last = evaluations[-1]
        numbers |= {
            "validation_loss": last["validation_loss"],
            "bit_accuracy": last["validation_bit_accuracy"],
            "validation_loss_per_scale": last["validation_loss_per_scale"],
            "validation_curve": {line["step"]: line["validation_loss"] for line in evaluations},
        }
    return numbers


def _drawn(checkpoint: str, cell: Cell, pictures: int) -> dict[str, Any]:
    """Measures the pictures of a checkpoint with the cell's config.sample; seeds begin with config.train.seed."""
    from infinity_jax.data import sources
    from infinity_jax.evaluation import generation

    pipeline = InfinityPipeline.from_pretrained(checkpoint)
    settings = from_dict(SampleConfig, cell.config.sample, "sample")
    logging.info("%s: drawing %d pictures", cell.name, pictures)
    model = pipeline.model
    real = generation.real_pictures(model.source, model.tokenizer.side, sources.fit_of(model.origin))
    # The same prompts for all cells, so that cells differ in nothing else.
    chosen = real.choose_prompts(0, pictures, seed=0)
    distinct = real.distinct()[chosen]
    chosen = np.concatenate([chosen[distinct], chosen[~distinct]])
    drawn = generation.generate(pipeline, real, settings, chosen, cell.config.train.seed * pictures)
    numbers = generation.quality(real, drawn, int(distinct.sum()))
    return {name: numbers[name] for name in _QUALITY} | {"sample": json.dumps(dataclasses.asdict(settings))}
