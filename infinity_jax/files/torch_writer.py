"""Writes the file that torch.save would write for a state dict, tensor by tensor and without torch."""

import math
import struct
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from infinity_jax.files.lazy_tensor import DTYPE_NAMES

_ALIGNMENT = 64  # of the values in the file, as torch has it
_PADDING_ID = b"FB"
_ZIP64_LIMIT = 1 << 30  # an entry above it has 64-bit sizes in its header (needed from 2 GiB on)
_ZIP64_EXTRA = 20


def write_torch_file(
    path: Path,
    shapes: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    arrays: Iterable[np.ndarray],
    nesting: Sequence[str] = (),
) -> None:
    """Writes a .pth file that torch.load reads, also with weights_only=True.

    Args:
      path: the file.
      shapes: name -> (dtype, shape) of all tensors, in the order of the state dict.
      arrays: the tensors in the same order; each is taken when the one before it is written.
      nesting: keys under which the state dict lies, outermost first.
    Raises:
      ValueError: an array has another dtype or shape, or there are too few or too many.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _add(archive, "data.pkl", _pickle(shapes, nesting))
        _add(archive, "byteorder", b"little")
        for i, ((name, (dtype, shape)), array) in enumerate(zip(shapes.items(), arrays, strict=True)):
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(f"{name} is {dtype} {shape}, not {array.dtype} {array.shape}")
            _add(archive, f"data/{i}", np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    entry = zipfile.ZipInfo(f"archive/{name}")
    entry.file_size = len(content)
    large = entry.file_size > _ZIP64_LIMIT
    header = archive.start_dir + 30 + len(entry.filename) + 4 + _ZIP64_EXTRA * large
    padding = -header % _ALIGNMENT
    entry.extra = _PADDING_ID + struct.pack("<H", padding) + bytes(padding)
    with archive.open(entry, "w", force_zip64=large) as file:
        file.write(content)


def _pickle(shapes: Mapping[str, tuple[np.dtype, tuple[int, ...]]], nesting: Sequence[str]) -> bytes:
    """Writes the pickle (protocol 2) of the nested state dict, whose tensors name their storages "0", "1", ..."""
    program = [b"\x80\x02"]
    program += [b"}" + _text(key) for key in nesting]
    program.append(b"}(")
    for i, (name, (dtype, shape)) in enumerate(shapes.items()):
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        storage = b"(" + _text("storage") + _global("torch", DTYPE_NAMES[dtype.name][1]) + _text(str(i))
        storage += _text("cpu") + _integer(math.prod(shape)) + b"tQ"  # tuple; look up the storage
        tensor = storage + _integer(0) + _tuple(shape) + _tuple(strides) + b"\x89"  # no gradient
        tensor += _global("collections", "OrderedDict") + b")R"  # no hooks
        program.append(_text(name) + _global("torch._utils", "_rebuild_tensor_v2") + b"(" + tensor + b"tR")
    program.append(b"u" + b"s" * len(nesting) + b".")
    return b"".join(program)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _integer(number: int) -> bytes:
    if number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    return b"\x8a\x08" + number.to_bytes(8, "little", signed=True)


def _tuple(numbers: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_integer, numbers)) + b"t"
