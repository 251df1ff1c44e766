"""Metrics on disk: JSON lines are the truth, TensorBoard mirrors them."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar

from infinity_jax.files import atomic

# The only keys that differ between a run and the same run killed and resumed; `goodput.py` makes them.
TIMING_KEYS = (
    *("seconds_per_step", "images_per_second", "tokens_per_second"),
    *("model_flops_per_second", "hardware_flops_per_second", "mfu", "hfu"),
    *("goodput", "start_share", "compile_share", "hooks_share", "checkpoint_share"),
    *("data_wait_share", "text_wait_share", "picture_wait_share"),
)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, in order; [] where there is none.

    Lines that were cut short by a crash or are damaged, or tell no step, are left out; a warning says how many.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    records = [record for line in lines if (record := _record(line)) is not None]
    if damaged := sum(bool(line.strip()) for line in lines) - len(records):
        logging.warning("%s: %d damaged lines are left out", path, damaged)
    return records


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("step")) is int else None


def _plain(value: Any) -> Any:
    """An array or number as plain JSON: floats, ints, lists; what is not finite becomes null."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (str, bool)) or value is None:
        return value
    value = np.asarray(value).tolist() if not isinstance(value, (int, float)) else value
    if isinstance(value, list):
        return _plain(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsWriter:
    """Appends to `metrics.jsonl` (training) and `evaluations.jsonl` in a run's folder.

    Each line is one object with "step" first. Values are numbers or lists of numbers. Of several processes only the
    first writes; what the others are given must be the same.
    """

    def __init__(self, workdir: str | os.PathLike[str], start_step: int):
        """Opens the files and cuts away lines of steps after `start_step`, which will be taken again."""
        self.workdir = Path(workdir)
        self._board = None
        if jax.process_index() != 0:
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            _cut(self.workdir / name, start_step)
        folder, first = self.workdir / "tensorboard", start_step + 1
        folder.mkdir(exist_ok=True)
        # The process in the name: two starts within a second must not write one file.
        self._board = EventsWriter(str(folder / "events"), filename_suffix=f".{os.getpid()}.{first}")
        # Hides what earlier files hold of the steps that will be taken again.
        self._board.write_event(Event(step=first, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: Mapping[str, Any], file: str = "metrics.jsonl") -> None:
        """Appends one line and mirrors it to TensorBoard. Raises OSError when the disk is full."""
        if self._board is None:
            return
        record = {"step": step} | {key: _plain(value) for key, value in values.items()}
        with (self.workdir / file).open("a") as lines:
            lines.write(json.dumps(record, allow_nan=False) + "\n")
        for name, value in _scalars(values).items():
            self._board.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        self._board.flush()

    def close(self) -> None:
        """Closes TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def _scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among `values`, a list's as "name/0", "name/1"; what is not finite is left out."""
    scalars = {}
    for key, value in values.items():
        value = _plain(value)
        items = (
            {f"{key}/{i}": item for i, item in enumerate(value)} if isinstance(value, list) else {key: value}
        )
        scalars |= {name: float(item) for name, item in items.items() if isinstance(item, (int, float))}
    return scalars


def _cut(path: Path, last_step: int) -> None:
    """Keeps only whole lines up to `last_step`; a crash in between leaves the old file."""
    if not path.exists():
        return
    kept = [record for record in read_lines(path) if record["step"] <= last_step]
    atomic.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
