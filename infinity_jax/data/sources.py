"""Data sets by name: each is a random-access sequence of {image, caption, id}."""

import difflib
from pathlib import Path
from typing import Protocol, TypedDict, runtime_checkable

from infinity_jax.data.prepared.config import RECORDS
from infinity_jax.errors import UserError
from infinity_jax.files import paths

SPLITS = ("train", "validation", "compositions")
_FOLDER = "folder:"


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


def open_source(name: str, split: str, data_dir: Path | str | None = None) -> Source:
    """Opens one split of a data set.

    `name` is "emoji_captions" (prepared under `data_dir` when it is not yet there), "folder:PATH" (see
    `infinity_jax.data.folder`) or "records:DIR" (see `infinity_jax.data.prepared.record_set`); `split` is one of train,
    validation, compositions. A folder has no compositions, and no validation below 20 pictures; records are all
    train: those sources are empty. Raises UserError for an unknown name or split and for a set without a usable
    picture.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")
    # The data sets are imported on demand: each needs `Record` from here, and TFDS takes a while to import.
    root = Path(data_dir) if data_dir is not None else paths.data_dir()
    if name.startswith(_FOLDER):
        from infinity_jax.data.folder import FolderSource

        return FolderSource(Path(name.removeprefix(_FOLDER)).expanduser(), split, root)
    if name == "emoji_captions":
        from infinity_jax.data.emoji_captions import EmojiSource

        return EmojiSource(split, root)
    if name.startswith(RECORDS):
        from infinity_jax.data.prepared.record_set import MixedRecords, RecordSource

        return RecordSource(MixedRecords(name)) if split == "train" else Nothing()
    near = difflib.get_close_matches(name, ["emoji_captions", _FOLDER, RECORDS], n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise UserError(
        f"unknown data source {name!r}{hint}; use 'emoji_captions', 'folder:PATH' or 'records:DIR'"
    )
