"""Arrays on disk that appear whole or not at all, each with its checksum: the caches of text and picture features."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from infinity_jax.errors import UserError
from infinity_jax.files import atomic, checksums


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


def load(path: Path, mmap: bool = True) -> np.ndarray:
    """Opens a .npy array that was written within `writing`, read-only through a memory map or not.

    Raises:
      ValueError, OSError: it is missing or is not what was written; it should be made anew.
    """
    try:
        noted = _checksum_file(path).read_text()
    except (FileNotFoundError, UnicodeDecodeError):
        noted = ""  # of an earlier version
    if noted and noted != _checksum(path):
        raise ValueError("its checksum is not that of what was written")
    return np.load(path, mmap_mode="r" if mmap else None)


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.xxh3")


def _checksum(path: Path) -> str:
    size, xxh3 = checksums.of_file(path)
    return f"{size} {xxh3}\n"


@contextmanager
def writing(path: Path, size: int) -> Iterator[Path]:
    """Yields a temporary path as `atomic.writing` does; a .npy file gets the checksum that `load` compares.

    Args:
      path: the file; its folder is made.
      size: of the file in bytes, for the message.
    Raises:
      UserError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.clean(path.parent)  # caches are large
        _checksum_file(path).unlink(missing_ok=True)  # so that it can never be that of another array
        with atomic.writing(path) as temporary:
            yield temporary
        if path.suffix == ".npy":
            atomic.write_text(_checksum_file(path), _checksum(path))
    except OSError as error:
        raise UserError(
            f"cached features cannot be written to {path} ({size / 1e6:.1f} MB): {error.strerror or error};"
            " free some space there or set INFINITY_DATA to another folder"
        ) from error
