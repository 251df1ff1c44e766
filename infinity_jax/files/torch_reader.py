"""Reads what torch.save wrote, without torch and without running pickled code.

Two layouts. Since torch 1.6: a zip archive with one pickle, NAME/data.pkl, and one uncompressed entry NAME/data/KEY
for each storage. Before ("legacy"): five pickles (a magic number, a protocol number, system facts, the object, the
list of storage keys), followed by each storage as an int64 count and its raw little-endian values.

Pickles are run by `torch_pickle`. A file may claim anything: what it says is compared with what it holds before
anything is allocated.
"""

import io
import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infinity_jax.errors import UserError, shortened
from infinity_jax.files import reading, torch_pickle
from infinity_jax.files.lazy_tensor import Entry, LazyTensor
from infinity_jax.files.torch_pickle import PickleMachine, Storage, Tensor

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# torch and NumPy allow as many axes; and so many bytes list 500,000 entries.
_MOST_AXES, _MOST_DIRECTORY = 64, 1 << 26


# A storage -> the byte of the file at which it begins, and its length in bytes.
_Locate = Callable[[Storage], tuple[int, int, int]]


class TorchFile:
    """An opened file: its object, whose tensors are still in the file.

    Raises:
      UserError: the file is of another layout, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading.opened(path) as file:
            start = file.read(64)
            file.seek(0)
            try:
                self.content, self._locate = (_open_zip if start[:2] == b"PK" else _open_legacy)(file)
            except UserError as error:
                raise UserError(f"{path} {error}") from error
            except Exception as error:  # nonsense may raise anything
                raise UserError(f"{path} {_guess(start, error)}") from error

    def tensors(self, nesting: Sequence[str] = ()) -> dict[str, LazyTensor]:
        """Returns the state dict under the keys `nesting`; UserError if something in it is not a whole tensor."""
        state = follow(self.content, nesting)
        if not isinstance(state, dict):
            under = f" under {' -> '.join(nesting)}" if nesting else ""
            raise UserError(f"{self.path} has no dictionary of tensors{under}; {describe(state)}")
        return {name: self._tensor(name, value) for name, value in _with_texts(state, self.path)}

    def _tensor(self, name: str, value: Any) -> LazyTensor:
        if not isinstance(value, Tensor) or not isinstance(value.storage, Storage):
            not_tensor = value.storage if isinstance(value, Tensor) else value
            raise UserError(
                f"{self.path}: {shortened(name)} {describe(not_tensor)}, which is not a tensor; give the weights alone"
            )
        kind, length = value.storage.kind, value.storage.length
        if getattr(kind, "dtype", None) is None:
            raise UserError(
                f"{self.path}: {shortened(name)} {describe(kind)}, which is not a dtype that is read here"
            )
        shape, strides = value.shape, value.strides
        numbers = (value.offset, length, *shape, *strides)
        sizes = all(isinstance(n, int) and 0 <= n < 2**60 for n in numbers)
        if len(shape) != len(strides) or len(shape) > _MOST_AXES or not sizes:
            raise UserError(
                f"{self.path} is damaged: {shortened(name)} has shape {shortened(shape)} and strides "
                f"{shortened(strides)}; download it again"
            )
        begin, size, crc = self._locate(value.storage)
        last = value.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        leaves = 0 not in shape and (last >= length or math.prod(shape) > length)
        if leaves or length * kind.dtype.itemsize > size:
            raise UserError(
                f"{self.path} is damaged: {shortened(name)} of shape {list(shape)} leaves its storage of {length} "
                f"values and {size} bytes; download it again"
            )
        contiguous = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        steps = None if strides == contiguous else strides
        entry = Entry(self.path, begin, size, crc) if crc else None
        return LazyTensor(
            self.path, begin + value.offset * kind.dtype.itemsize, kind.dtype, shape, steps, entry
        )


def _with_texts(state: dict, path: Path) -> list[tuple[str, Any]]:
    """Lists names and values, with texts for names that are numbers."""
    names = [name if isinstance(name, str) else shortened(name) for name in state]
    if len(set(names)) < len(names):
        raise UserError(f"{path} is damaged: two of its tensors have the same name; download it again")
    return list(zip(names, state.values(), strict=True))


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
        return f"asks for {shortened(asks_for, quoted=False)}"
    if isinstance(value, dict):
        names = ", ".join(shortened(name, 40) for name in list(value)[:8])
        return f"is a dictionary of {names or 'nothing'}"
    return f"is of type {type(value).__name__}"


def _guess(start: bytes, error: Exception) -> str:
    said = shortened(str(error) or type(error).__name__, quoted=False)
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS in place of the weights; fetch them: git lfs pull"
    if start[:2] == b"PK":
        return f"is a damaged or cut-off torch file ({said}); download it again"
    return f"is damaged, or no file of torch.save ({type(error).__name__}: {said}); download it again"


def _open_zip(file: io.BufferedReader) -> tuple[Any, _Locate]:
    _check_directory(file)
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError("is a zip archive, but none of torch.save: it has no data.pkl")
        prefix = pickles[0].removesuffix("data.pkl")
        order = _small(archive, entries.get(f"{prefix}byteorder"), 64) or b"little"
        if order != b"little":
            raise UserError(f"has values in {shortened(order)} byte order; only little is read")
        content = torch_pickle.load(_small(archive, entries[pickles[0]], torch_pickle.MOST_BYTES))
    path, whole = Path(file.name), file.seek(0, io.SEEK_END)

    def locate(storage: Storage) -> tuple[int, int, int]:
        info = entries.get(f"{prefix}data/{storage.key}")
        if info is None or info.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{path} is damaged: storage {shortened(storage.key)} is missing or compressed")
        begin = _entry_start(path, info)
        # torch writes 0 as the CRC where it was told to compute none.
        return begin, max(0, min(info.file_size, whole - begin)), info.CRC

    return content, locate


def _check_directory(file: io.BufferedReader) -> None:
    """Raises ValueError where the list of entries would fill the memory; `zipfile` reads all of it."""
    length = file.seek(0, io.SEEK_END)
    file.seek(max(0, length - (1 << 16) - 98))
    tail = file.read()
    for mark, at, width in ((b"PK\5\6", 12, 4), (b"PK\6\6", 40, 8)):
        place = tail.rfind(mark)
        size = int.from_bytes(tail[place + at : place + at + width], "little")
        if place >= 0 and _MOST_DIRECTORY < size < 2 ** (8 * width) - 1:
            raise ValueError(f"its list of entries has {size} bytes")
    file.seek(0)


def _small(archive: zipfile.ZipFile, info: zipfile.ZipInfo | None, most: int) -> bytes:
    """Reads an entry whole, b"" if it is None; ValueError if it is compressed, as a bomb is, or longer than `most`."""
    if info is None:
        return b""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
        raise ValueError(f"{shortened(info.filename)} in it is compressed or longer than {most} bytes")
    return archive.read(info)


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
    magic = PickleMachine().load(file)
    if magic != LEGACY_MAGIC:
        raise UserError(f"is no file of torch.save (magic number {shortened(magic)})")
    _protocol, system = (PickleMachine().load(file) for _ in range(2))
    if not system.get("little_endian", True):
        raise UserError("has values in big byte order; only little is read")
    machine = PickleMachine()
    content = machine.load(file)
    places: dict[str, tuple[int, int]] = {}
    keys = PickleMachine().load(file)
    whole = file.seek(0, io.SEEK_CUR), file.seek(0, io.SEEK_END)
    file.seek(whole[0])
    for key in keys:
        storage = machine.storages[key]
        dtype = getattr(storage.kind, "dtype", None)
        if dtype is None:
            raise UserError(
                f"storage {shortened(key)} {describe(storage.kind)}, a dtype that is not read here"
            )
        size = storage.length * dtype.itemsize
        count = int.from_bytes(file.read(8), "little")
        places[key] = file.tell(), size
        if count != storage.length or file.tell() + size > whole[1]:
            raise EOFError(f"storage {key} should hold {shortened(storage.length)} values")
        file.seek(size, 1)

    def locate(storage: Storage) -> tuple[int, int, int]:
        if storage.key not in places:
            raise UserError(
                f"{file.name} is damaged: storage {shortened(storage.key)} is missing; download it again"
            )
        return *places[storage.key], 0

    return content, locate
