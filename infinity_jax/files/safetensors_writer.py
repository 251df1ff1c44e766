"""Writes a .safetensors file piece by piece, in any order, with one tensor in memory at a time."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Shaped

from infinity_jax.files.lazy_tensor import DTYPE_NAMES


class SafetensorsWriter:
    """A file whose header is written first; then arrays, or rows of arrays, are put in their place.

    As a context manager it checks at the end that everything was written; the caller removes the file after an error.
    The disk's room is taken at once, so a full disk shows before the work is done.
    """

    def __init__(self, path: Path, arrays: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> None:
        """Writes the header.

        Args:
          path: the file.
          arrays: name -> (dtype, shape) of all arrays, in the order in which they will lie in the file.
        """
        header, end = {}, 0
        self._arrays = dict(arrays)
        self._starts: dict[str, int] = {}
        for name, (dtype, shape) in arrays.items():
            start, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": DTYPE_NAMES[dtype.name][0], "shape": shape, "data_offsets": [start, end]}
            self._starts[name] = start
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._path, self._data = path, 8 + len(text)
        self._missing: dict[str, set[int | None]] = {name: {None} for name in arrays}
        self._file = open(path, "wb")  # noqa: SIM115  (closed by __exit__)
        try:
            self._write_at(0, np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8))
            if end and hasattr(os, "posix_fallocate"):  # not on macOS
                self._on_disk(lambda: os.posix_fallocate(self._file.fileno(), self._data, end))
        except BaseException:
            self._file.close()
            raise

    def write(self, name: str, array: Shaped[np.ndarray, "..."], row: int | None = None) -> None:
        """Writes the whole array `name`, or only its entry `row` along the first axis.

        Raises:
          ValueError: another dtype or shape than was announced, or this was written already.
        """
        dtype, shape = self._arrays[name]
        wanted = shape if row is None else shape[1:]
        if array.dtype != dtype or array.shape != wanted:
            raise ValueError(f"{name} is {dtype} {wanted}, not {array.dtype} {array.shape}")
        if row is not None and self._missing[name] == {None}:
            self._missing[name] = set(range(shape[0]))
        if row not in self._missing[name]:
            raise ValueError(f"row {row} of {name} does not exist or was written already")
        self._missing[name].remove(row)
        start = self._data + self._starts[name] + (row or 0) * math.prod(wanted) * dtype.itemsize
        self._write_at(start, np.ascontiguousarray(array).reshape(-1).view(np.uint8))

    def _write_at(self, start: int, raw: np.ndarray) -> None:
        rest = raw.data
        while rest:
            done = self._on_disk(lambda at=start, part=rest: os.pwrite(self._file.fileno(), part, at))
            rest, start = rest[done:], start + done

    def _on_disk(self, action):
        try:
            return action()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        self._file.close()
        missing = [name for name, rows in self._missing.items() if rows]
        if kind is None and missing:
            raise ValueError(f"{self._path}: never written: {', '.join(missing[:8])} ({len(missing)} arrays)")
