"""A tensor in a file of weights that is read when it is wanted, and the dtypes that such files have."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

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
class LazyTensor:
    """Where the values of a tensor lie; no file is held open.

    Attributes:
      path: the file.
      start: the byte at which the first value begins.
      dtype, shape: of the tensor.
      strides: counted in values; None means that they follow one another, last axis fastest.
    """

    path: Path
    start: int
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    def read(self) -> Shaped[np.ndarray, "..."]:
        """Reads the values into a new array of `shape` and `dtype`; UserError if the file is shorter than it was."""
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
        return raw.view(self.dtype)

    def row(self, index: int) -> "LazyTensor":
        """Returns entry `index` along the first axis of a tensor without strides."""
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        return dataclasses.replace(self, start=self.start + index * size, shape=self.shape[1:])
