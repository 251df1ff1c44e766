"""A record, and what a source of records is."""

import hashlib
from typing import Protocol, TypedDict, runtime_checkable

SPLITS = ("train", "validation", "compositions")


class Record(TypedDict):
    """One captioned picture: encoded bytes (PNG, JPEG, WebP, ...), caption, id unique in the data set."""

    image: bytes
    caption: str
    id: str


@runtime_checkable
class Source(Protocol):
    """Random access to the records of one split; can be pickled."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


def fraction(text: str) -> float:
    """Hashes a text to a number in [0, 1), which decides the split that it belongs to."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
