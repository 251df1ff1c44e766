"""Arrays on disk that appear whole or not at all: the caches of text and picture features."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from infinity_jax.errors import UserError
from infinity_jax.files import atomic


def reserve(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> np.memmap:
    """Makes a zero .npy array on disk that is writable through a memory map.

    The zeros are really written: a full disk shows here as an error (OSError), while writing to the
    memory map of a file with holes would kill the process.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    zeros, left = bytes(1 << 20), array.nbytes
    with open(path, "r+b") as file:
        file.seek(array.offset)
        while left:
            left -= file.write(zeros[:left])
        file.flush()
        os.fsync(file.fileno())
    return array


@contextmanager
def writing(path: Path, size: int) -> Iterator[Path]:
    """Yields a temporary path as `atomic.writing` does, with words about the cache where it cannot be written.

    Args:
      path: the file; its folder is made.
      size: of the file in bytes, for the message.
    Raises:
      UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.writing(path) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(
            f"cached features cannot be written to {path} ({size / 1e6:.1f} MB): {error.strerror or error};"
            " free some space there or set INFINITY_DATA to another folder"
        ) from error
