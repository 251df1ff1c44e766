"""Writes the pictures of a long list to their files, in threads while the next batch is drawn."""

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from infinity_jax.files import pictures as picture_files

_WRITING_THREADS = 4
_SECONDS_BETWEEN_LINES = 10.0


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A picture that is wanted: its file, and the metadata that says how it is drawn."""

    path: Path
    metadata: Mapping[str, Any]

    def is_there(self) -> bool:
        """Tells whether the file is whole and its picture was drawn so."""
        return picture_files.read_metadata(self.path) == self.metadata


def write_all(
    pictures: Mapping[int, Wanted] | Sequence[Wanted],
    drawn: Iterable[tuple[Sequence[int], Sequence[np.ndarray] | np.ndarray]],
    how_to_resume: str,
) -> None:
    """Writes pictures, each whole or not at all, and logs the progress now and then.

    Args:
      pictures: by number.
      drawn: which of `pictures`, and one uint8 array [H,W,3] for each; every picture once.
      how_to_resume: is logged when the run is stopped.
    """
    progress = _Progress(len(pictures))
    writing: list[Future[None]] = []
    with ThreadPoolExecutor(_WRITING_THREADS) as threads:
        try:
            for numbers, images in drawn:
                progress.finish(writing)
                writing = [
                    threads.submit(picture_files.write, Image.fromarray(x), wanted.path, wanted.metadata)
                    for wanted, x in zip([pictures[i] for i in numbers], images, strict=True)
                ]
            progress.finish(writing)
        except BaseException:
            threads.shutdown(cancel_futures=True)
            logging.info("stopped with %d of %d pictures; %s", progress.done, len(pictures), how_to_resume)
            raise


class _Progress:
    """Counts pictures that are written, and logs the count now and then."""

    def __init__(self, total: int):
        self.done = 0
        self._total = total
        self._first: tuple[float, int] | None = None
        self._shown = time.monotonic()

    def finish(self, writing: Sequence[Future[None]]) -> None:
        """Waits for the pictures of a batch; raises what went wrong with one."""
        for future in writing:
            future.result()
        self.done += len(writing)
        now = time.monotonic()
        if self._first is None:
            # The first batch waits for the compiler, so it does not count for the speed.
            self._first = (now, self.done) if self.done else None
            return
        if now - self._shown >= _SECONDS_BETWEEN_LINES or self.done == self._total:
            self._shown = now
            start, already = self._first
            speed = (self.done - already) / (now - start)
            logging.info("%d of %d pictures (%.3g a second)", self.done, self._total, speed)
