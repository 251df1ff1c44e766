"""TensorBoard's event files, written in the calling thread so that a full disk is reported where it happens."""

import os
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar


class TensorBoardFile:
    """One new event file in a folder; it hides what earlier files there hold from `purge_step` on."""

    def __init__(self, folder: Path, purge_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        # The process in the name: two starts within a second must not write one file.
        self._events = EventsWriter(str(folder / "events"), filename_suffix=f".{os.getpid()}.{purge_step}")
        self._events.write_event(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Appends the scalars of one step. Raises OSError when the disk is full."""
        for name, value in scalars.items():
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        self._events.flush()

    def close(self) -> None:
        """Closes the file."""
        self._events.close()
