"""Writes the pictures of a long list to their files, in threads while the next batch is drawn."""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from infinity_jax.files import pictures as picture_files
from infinity_jax.files.progress import Progress

_WRITING_THREADS = 4


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
    progress = Progress("drawing", len(pictures), "pictures")
    writing: list[Future[None]] = []
    with ThreadPoolExecutor(_WRITING_THREADS) as threads, contextlib.closing(progress):
        try:
            for numbers, images in drawn:
                _finish(writing, progress)
                writing = [
                    threads.submit(picture_files.write, Image.fromarray(x), wanted.path, wanted.metadata)
                    for wanted, x in zip([pictures[i] for i in numbers], images, strict=True)
                ]
            _finish(writing, progress)
        except BaseException:
            threads.shutdown(cancel_futures=True)
            logging.info("stopped with %d of %d pictures; %s", progress.done, len(pictures), how_to_resume)
            raise


def _finish(writing: Sequence[Future[None]], progress: Progress) -> None:
    """Waits for the pictures of a batch; raises what went wrong with one."""
    for future in writing:
        future.result()
    progress.advance(len(writing))
