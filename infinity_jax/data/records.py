"""A record, and what a source of records is."""

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


class Nothing:
    """A split without records."""

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int, /) -> Record:
        raise IndexError(f"record {index} of a split that has none")
