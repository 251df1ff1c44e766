"""Arrays on disk that appear whole or not at all: the caches of text and picture features."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from infinity_jax.errors import UserError


def reserve(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> np.memmap:
    """A zero .npy array on disk, writable through a memory map.

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
    """A temporary file beside `path` that takes its name at the end; nothing is left after an error.

    `size`, in bytes, is for the message. Raises UserError where the file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cached features cannot be written to {path} ({size / 1e6:.1f} MB): {error};"
            " free some space there or set INFINITY_DATA to another folder"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
