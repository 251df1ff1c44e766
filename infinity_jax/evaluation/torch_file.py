"""Reads tensors from a file that an old torch.save wrote, without torch and without running pickled code.

The old ("legacy") layout is five pickles (a magic number, a protocol number, system facts, the object, the list of
storage keys), followed by each storage as an int64 count and its raw little-endian values.
"""

import collections
import pickle
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np

from infinity_jax.errors import UserError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STORAGE_TYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    length: int


class _Tensor(NamedTuple):
    """Where a tensor lies in its storage; offset and strides count elements, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


class _TensorUnpickler(pickle.Unpickler):
    """Knows the four names that a state dict needs, as stand-ins of our own; every other name is an error."""

    ALLOWED: ClassVar = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        **{("torch", name): dtype for name, dtype in STORAGE_TYPES.items()},
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return self.ALLOWED[module_name, global_name]
        except KeyError:
            raise UserError(
                f"the weight file asks for {module_name}.{global_name}, which a file of plain tensors never needs: "
                "it is damaged or not to be trusted; install the package again"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, length, view = pid
        if kind != "storage" or view is not None:
            raise UserError(
                f"the weight file has a {kind!r} entry with view {view!r}; only plain storages are read"
            )
        return _Storage(key, dtype, length)


def read_legacy_torch_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict saved by torch before 1.6, by name, as contiguous arrays (float32 or int64).

    Raises `UserError` when the file is of another layout, damaged, or names anything but tensors.
    """
    with open(path, "rb") as file:
        try:
            magic = _TensorUnpickler(file).load()
            if magic != LEGACY_MAGIC:
                raise UserError(f"{path} is not a legacy torch file (magic number {magic!r})")
            _protocol, _system, state, keys = (_TensorUnpickler(file).load() for _ in range(4))
            stored = {tensor.storage.key: tensor.storage for tensor in state.values()}
            storages = {key: _read_storage(file, stored[key]) for key in keys}
        except (pickle.UnpicklingError, EOFError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}); install its package again") from error
    return {name: _strided(storages[tensor.storage.key], tensor) for name, tensor in state.items()}


def _read_storage(file: BinaryIO, storage: _Storage) -> np.ndarray:
    length = int.from_bytes(file.read(8), "little")
    raw = file.read(storage.length * storage.dtype.itemsize)
    if length != storage.length or len(raw) != storage.length * storage.dtype.itemsize:
        raise EOFError(f"storage {storage.key} should hold {storage.length} values")
    return np.frombuffer(raw, storage.dtype)


def _strided(values: np.ndarray, tensor: _Tensor) -> np.ndarray:
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if tensor.offset < 0 or min(tensor.strides, default=0) < 0 or last >= len(values):
        raise UserError(
            f"the weight file has a tensor of shape {tensor.shape} that leaves its storage; install again"
        )
    bytes_ = [s * values.itemsize for s in tensor.strides]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, bytes_).copy()
