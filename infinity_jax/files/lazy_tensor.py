"""A tensor in a file of weights that is read when it is wanted, and the dtypes that such files have."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from infinity_jax.errors import UserError

# dtype: its name in a .safetensors file, and that of torch's storage.
DTYPE_NAMES = {
    "float64": ("F64", "DoubleStorage"),
    "float32": ("F32", "FloatStorage"),
    "float16": ("F16", "HalfStorage"),
    "bfloat16": ("BF16", "BFloat16Storage"),
    "int64": ("I64", "LongStorage"),
    "int32": ("I32", "IntStorage"),
    "int16": ("I16", "ShortStorage"),
    "int8": ("I8", "CharStorage"),
    "uint8": ("U8", "ByteStorage"),
    "bool": ("BOOL", "BoolStorage"),
}


def dtype_named(name: str) -> np.dtype:
    """Returns the NumPy dtype called "float32", "bfloat16", ...; UserError if weights cannot have it."""
    if name not in DTYPE_NAMES:
        raise UserError(f"unknown dtype {name!r} of weights; known: {', '.join(DTYPE_NAMES)}")
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


SAFETENSORS_DTYPES: Mapping[str, np.dtype] = MappingProxyType(
    {names[0]: dtype_named(dtype) for dtype, names in DTYPE_NAMES.items()}
)
TORCH_STORAGES: Mapping[str, np.dtype] = MappingProxyType(
    {names[1]: dtype_named(dtype) for dtype, names in DTYPE_NAMES.items()}
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry of a zip archive, in which tensors lie: what it should hold.

    Attributes:
      path: the archive.
      start, size: its bytes there.
      crc: their CRC-32.
    """

    path: Path
    start: int
    size: int
    crc: int

    def check(self, content: Any) -> None:
        """Raises UserError unless this is the content."""
        if zlib.crc32(content) != self.crc:
            raise UserError(f"{self.path} is damaged at byte {self.start}: {_NOT_WRITTEN}")

    @functools.cache  # noqa: B019  (entries are few and small)
    def check_file(self) -> None:
        """Reads the entry, once in a process, and checks it."""
        crc, left = 0, self.size
        with open(self.path, "rb") as file:
            file.seek(self.start)
            while left and (part := file.read(min(left, 1 << 20))):
                crc, left = zlib.crc32(part, crc), left - len(part)
        if left or crc != self.crc:
            raise UserError(f"{self.path} is damaged at byte {self.start}: {_NOT_WRITTEN}")


_NOT_WRITTEN = "its CRC-32 is not that of what was written; copy or download it again"


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """Where the values of a tensor lie; no file is held open.

    Attributes:
      path: the file.
      start: the byte at which the first value begins.
      dtype, shape: of the tensor.
      strides: counted in values; None means that they follow one another, last axis fastest.
      entry: what is checked when it is read; None where the file has no checksums.
    """

    path: Path
    start: int
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    entry: Entry | None = None

    def read(self) -> Shaped[np.ndarray, "..."]:
        """Reads the values into a new array of `shape` and `dtype`; UserError if the file is damaged."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        if self.strides is None:
            return self._values(math.prod(self.shape)).reshape(self.shape)
        steps = zip(self.shape, self.strides, strict=True)
        values = self._values(1 + sum((length - 1) * stride for length, stride in steps))
        byte_strides = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(values, self.shape, byte_strides).copy()

    def _values(self, count: int) -> np.ndarray:
        raw = np.empty(count * self.dtype.itemsize, np.uint8)
        with open(self.path, "rb") as file:
            file.seek(self.start)
            got = file.readinto(raw.data)
        if got != len(raw):
            raise UserError(f"{self.path} ends {len(raw) - got} bytes too early; copy or download it again")
        if self.entry is not None and (self.start, got) == (self.entry.start, self.entry.size):
            self.entry.check(raw.data)  # without reading it twice
        elif self.entry is not None:
            self.entry.check_file()
        return raw.view(self.dtype)

    def row(self, index: int) -> "LazyTensor":
        """Returns entry `index` along the first axis of a tensor without strides."""
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        return dataclasses.replace(self, start=self.start + index * size, shape=self.shape[1:])
