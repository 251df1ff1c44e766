"""Reads what torch.save wrote, without torch and without running pickled code.

Two layouts. Since torch 1.6: a zip archive with one pickle, NAME/data.pkl, and one uncompressed entry NAME/data/KEY
for each storage. Before ("legacy"): five pickles (a magic number, a protocol number, system facts, the object, the
list of storage keys), followed by each storage as an int64 count and its raw little-endian values.

A pickle is a program that calls what it names. Of the names, only those that a state dict needs are known here, as
stand-ins of our own; every other name becomes an object that takes anything and does nothing.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from infinity_jax.errors import UserError
from infinity_jax.files.lazy_tensor import TORCH_STORAGES, Entry, LazyTensor

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class _Inert:
    """Takes whatever a pickle does to an object, and does nothing."""

    asks_for = ""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return super().__new__(cls)

    def __init__(*_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self

    def __setstate__(*_: Any) -> None:  # called on the class too, where a pickle names it and changes it
        pass

    def __setitem__(*_: Any) -> None:
        pass

    append = extend = add = __setstate__


class _Dict(dict):
    """Stands for collections.OrderedDict; attributes that a pickle gives it are dropped."""

    def __setstate__(*_: Any) -> None:
        pass


class _StorageType(_Inert):
    def __init__(self, name: str, dtype: np.dtype) -> None:
        self.asks_for, self.dtype = f"torch.{name}", dtype


class _Storage(NamedTuple):
    key: str
    kind: Any  # a _StorageType where the dtype is one that we read
    length: int


class _Tensor(NamedTuple):
    """Where a tensor lies in its storage; offset and strides count values, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _RebuildTensor(_Inert):
    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
        return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _RebuildParameter(_Inert):
    def __call__(self, data: Any, *_: Any) -> Any:
        return data


class _Unpickler(pickle.Unpickler):
    KNOWN: ClassVar = {
        ("collections", "OrderedDict"): _Dict,
        ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
        ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
        ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
        ("torch._utils", "_rebuild_parameter_with_state"): _RebuildParameter(),
        **{("torch", name): _StorageType(name, dtype) for name, dtype in TORCH_STORAGES.items()},
    }

    def __init__(self, file: io.BufferedIOBase) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        known = self.KNOWN.get((module_name, global_name))
        return known or type("_Unknown", (_Inert,), {"asks_for": f"{module_name}.{global_name}"})

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] != "storage":  # ("module", class, its source): the class is what stands for it
            return pid[1]
        _, storage_type, key, _device, length, *view = pid
        if any(part is not None for part in view):
            return type("_Unknown", (_Inert,), {"asks_for": f"a storage that is a view ({view})"})()
        self.storages[key] = _Storage(key, storage_type, length)
        return self.storages[key]


# A storage -> the byte of the file at which it begins, and its length in bytes.
_Locate = Callable[[_Storage], tuple[int, int, int]]


class TorchFile:
    """An opened file: its object, whose tensors are still in the file.

    Raises:
      UserError: the file is of another layout, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            start = file.read(64)
            file.seek(0)
            try:
                self.content, self._locate = (_open_zip if start[:2] == b"PK" else _open_legacy)(file)
            except UserError as error:
                raise UserError(f"{path} {error}") from error
            except Exception as error:  # unpickling nonsense may raise anything
                raise UserError(f"{path} {_guess(start, error)}") from error

    def tensors(self, nesting: Sequence[str] = ()) -> dict[str, LazyTensor]:
        """Returns the state dict under the keys `nesting`; UserError if something in it is not a whole tensor."""
        state = follow(self.content, nesting)
        if not isinstance(state, dict):
            under = f" under {' -> '.join(nesting)}" if nesting else ""
            raise UserError(f"{self.path} has no dictionary of tensors{under}; {describe(state)}")
        return {str(name): self._tensor(str(name), value) for name, value in state.items()}

    def _tensor(self, name: str, value: Any) -> LazyTensor:
        if not isinstance(value, _Tensor) or not isinstance(value.storage, _Storage):
            not_tensor = value.storage if isinstance(value, _Tensor) else value
            raise UserError(f"{self.path}: {name!r} {describe(not_tensor)}, which is not a tensor")
        kind, length = value.storage.kind, value.storage.length
        if not isinstance(kind, _StorageType):
            raise UserError(f"{self.path}: {name!r} {describe(kind)}, which is not a dtype that is read here")
        shape, strides = value.shape, value.strides
        numbers = (value.offset, length, *shape, *strides)
        if len(shape) != len(strides) or not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise UserError(f"{self.path} is damaged: {name!r} has shape {shape} and strides {strides}")
        begin, size, crc = self._locate(value.storage)
        last = value.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if (0 not in shape and last >= length) or length * kind.dtype.itemsize > size:
            raise UserError(
                f"{self.path} is damaged: {name!r} of shape {list(shape)} leaves its storage of {length} values "
                f"and {size} bytes; download it again"
            )
        contiguous = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        steps = None if strides == contiguous else strides
        entry = Entry(self.path, begin, size, crc) if crc else None
        return LazyTensor(
            self.path, begin + value.offset * kind.dtype.itemsize, kind.dtype, shape, steps, entry
        )


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a flat state dict, by name, as contiguous arrays."""
    return {name: tensor.read() for name, tensor in TorchFile(path).tensors().items()}


def follow(content: Any, nesting: Sequence[str]) -> Any:
    """Returns what lies in dicts of dicts under the keys `nesting`; None if it is not there."""
    for key in nesting:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def describe(value: Any) -> str:
    """Describes what stands in place of a tensor, as the end of a sentence."""
    asks_for = getattr(value, "asks_for", "")
    if asks_for:
        return f"asks for {asks_for}"
    if isinstance(value, dict):
        return f"is a dictionary of {', '.join(map(repr, list(value)[:8])) or 'nothing'}"
    return f"is of type {type(value).__name__}"


def _guess(start: bytes, error: Exception) -> str:
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS in place of the weights; fetch them: git lfs pull"
    if start[:2] == b"PK":
        return f"is a damaged or cut-off torch file ({error}); download it again"
    return f"is damaged, or no file of torch.save ({type(error).__name__}: {error}); download it again"


def _open_zip(file: io.BufferedReader) -> tuple[Any, _Locate]:
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError("is a zip archive, but none of torch.save: it has no data.pkl")
        prefix = pickles[0].removesuffix("data.pkl")
        order = archive.read(f"{prefix}byteorder") if f"{prefix}byteorder" in entries else b"little"
        if order != b"little":
            raise UserError(f"has values in {order!r} byte order; only little is read")
        content = _Unpickler(io.BytesIO(archive.read(pickles[0]))).load()
    path = Path(file.name)

    def locate(storage: _Storage) -> tuple[int, int, int]:
        info = entries.get(f"{prefix}data/{storage.key}")
        if info is None or info.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{path} is damaged: storage {storage.key!r} is missing or compressed")
        # torch writes 0 where it was told to compute none.
        return _entry_start(path, info), info.file_size, info.CRC

    return content, locate


def _entry_start(path: Path, info: zipfile.ZipInfo) -> int:
    """Finds where the values of a zip entry begin: after its header, a name and padding of any length."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
    if header[:4] != b"PK\x03\x04":
        raise UserError(f"{path} is damaged at {info.filename}; download it again")
    lengths = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    return info.header_offset + 30 + sum(lengths)


def _open_legacy(file: io.BufferedReader) -> tuple[Any, _Locate]:
    magic = _Unpickler(file).load()
    if magic != LEGACY_MAGIC:
        raise UserError(f"is no file of torch.save (magic number {magic!r})")
    _protocol, system = (_Unpickler(file).load() for _ in range(2))
    if not system.get("little_endian", True):
        raise UserError("has values in big byte order; only little is read")
    unpickler = _Unpickler(file)
    content = unpickler.load()
    places: dict[str, tuple[int, int]] = {}
    for key in _Unpickler(file).load():
        storage = unpickler.storages[key]
        if not isinstance(storage.kind, _StorageType):
            raise UserError(f"storage {key!r} {describe(storage.kind)}, a dtype that is not read here")
        size = storage.length * storage.kind.dtype.itemsize
        count = int.from_bytes(file.read(8), "little")
        places[key] = file.tell(), size
        end = file.seek(size, 1)
        if count != storage.length or end > file.seek(0, 2):
            raise EOFError(f"storage {key} should hold {storage.length} values")
        file.seek(end)
    return content, lambda storage: (*places[storage.key], 0)
