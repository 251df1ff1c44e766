"""Records in ArrayRecord files: one file for each aspect ratio of each part, read at random places."""

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from infinity_jax.errors import UserError
from infinity_jax.files import atomic

# Each record by itself, so that any one is read alone; pictures and features hardly become smaller.
_WRITER = "group_size:1,uncompressed"
_OPEN_READERS = 256
# The types of arrays in records; an array's is the key under which its bytes stand.
_ARRAYS = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}


def shard_name(ratio: str) -> str:
    """Names the file of a ratio "3:2" in a part's folder, "3x2.array_record"."""
    return f"{ratio.replace(':', 'x')}.array_record"


class ShardWriter:
    """Writes records into the files of their ratios in a folder."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._writers: dict[str, Any] = {}
        self.counts: dict[str, int] = {}

    def write(self, ratio: str, packed: bytes) -> None:
        """Adds a record as `pack` gives it. OSError as `close`."""
        with atomic.os_errors(RuntimeError):
            if ratio not in self._writers:
                self._writers[ratio] = ArrayRecordWriter(str(self._folder / shard_name(ratio)), _WRITER)
                self.counts[ratio] = 0
            self._writers[ratio].write(packed)
        self.counts[ratio] += 1

    def close(self) -> None:
        """Ends all files; OSError if the disk did not take them."""
        for ratio, writer in self._writers.items():
            with atomic.os_errors(RuntimeError):
                writer.close()
            with open(self._folder / shard_name(ratio), "rb") as file:
                os.fsync(file.fileno())
        self._writers = {}


def read(file: Path, position: int) -> dict[str, Any]:
    """Reads one record. Raises UserError if the file is missing or damaged."""
    try:
        return unpack(_reader(str(file)).read([position])[0])
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise UserError(
            f"record {position} of {file} cannot be read: {error}; restore the file, or prepare the set again"
        ) from error


@functools.lru_cache(_OPEN_READERS)
def _reader(file: str) -> Any:
    # A reader that falls out of the cache closes its file once no thread uses it.
    if not os.path.isfile(file):
        raise FileNotFoundError("no such file")
    return ArrayRecordReader(file, options="readahead_buffer_size:0", file_reader_buffer_size=32768)


def pack(record: Mapping[str, Any]) -> bytes:
    """Packs a record into bytes: text, bytes, numbers, lists and dicts of them, bfloat16 and float32 arrays."""
    packed = msgpack.packb(dict(record), default=_pack_array)
    assert isinstance(packed, bytes)
    return packed


def unpack(content: bytes) -> dict[str, Any]:
    """Unpacks what `pack` has packed."""
    return msgpack.unpackb(content, object_hook=_unpack_array)


def _pack_array(value: Any) -> dict[str, Any]:
    array = np.asarray(value)
    name = str(array.dtype)
    if name not in _ARRAYS:
        raise TypeError(f"a record holds {name}; arrays in records are {' or '.join(_ARRAYS)}")
    return {name: array.tobytes(), "shape": list(array.shape)}


def _unpack_array(value: dict) -> Any:
    for name, dtype in _ARRAYS.items():
        if isinstance(value.get(name), bytes):
            return np.frombuffer(value[name], dtype).reshape(value["shape"])
    return value
