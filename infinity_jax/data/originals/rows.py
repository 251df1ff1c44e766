"""What every kind of original gives: parts that are read independently, of rows or of reasons why not."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from infinity_jax.data import captions as caption_text

LONG_KEYS = ("long_caption",)
SHORT_KEYS = ("text", "caption", "captions", "short_caption")
IMAGE_KEYS = ("image_path", "file_name", "image", "file")
# Known, and not needed: the ratio is measured on the picture itself.
NOT_USED = ("h_div_w", "long_caption_type", "short_caption_type", "width", "height", "id", "key", "url")
_KNOWN = {*LONG_KEYS, *SHORT_KEYS, *IMAGE_KEYS, *NOT_USED}
# A part is what one process works on at a time, and what is done again after a kill.
_PARTS, _SMALLEST_PART, _LARGEST_PART = 16, 256, 16384


@dataclasses.dataclass(frozen=True)
class Row:
    """One captioned picture.

    Attributes:
      id: where it comes from, for messages: file and line, or name in a tar.
      image: its encoded bytes, or the file that holds them.
      captions: "long" and "short", each with alternatives.
      scores: numbers by which it can be left out in training, by column.
      unread: columns that mean nothing here, for the report.
    """

    id: str
    image: bytes | Path
    captions: Mapping[str, list[str]]
    scores: Mapping[str, float]
    unread: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A row that is left out, and why: `kind` is one of few, `detail` says more."""

    id: str
    kind: str
    detail: str = ""


class Part(Protocol):
    """Some rows of an original; can be pickled."""

    def rows(self) -> Iterator[Row | Skipped]:
        """Its rows, always the same in the same order."""
        ...

    def name(self) -> str:
        """Names the part, in every run alike, so that the part of another set is never taken for it."""
        ...


def part_size(rows: int) -> int:
    """Rows of a part: enough parts for many processes, but not so many files that they are a burden."""
    return min(_LARGEST_PART, max(_SMALLEST_PART, -(-rows // _PARTS)))


def captions_of(fields: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the cleaned captions in a row's fields; {} if there is none."""
    captions = {}
    for kind, keys in (("long", LONG_KEYS), ("short", SHORT_KEYS)):
        texts = [text for key in keys for text in _texts(fields.get(key))]
        cleaned = [text for text in map(caption_text.clean, texts) if text]
        if cleaned:
            captions[kind] = list(dict.fromkeys(cleaned))
    return captions


def _texts(value: Any) -> Sequence[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, (list, tuple)):
        return [text for text in value if isinstance(text, str)]
    return []


def scores_of(fields: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers among a row's other fields, by column; text that is a number counts too (csv)."""
    scores = {}
    for key, value in fields.items():
        if key in _KNOWN or isinstance(value, bool) or not isinstance(value, (int, float, str)):
            continue
        try:
            scores[_column(key)] = float(value)
        except (ValueError, OverflowError):  # an integer may be larger than any float
            continue
    return scores


def unread_columns(fields: Mapping[str, Any]) -> set[str]:
    """Returns the columns that are neither known nor scores."""
    filled = {_column(key) for key, value in fields.items() if value not in (None, "")}
    return filled - _KNOWN - scores_of(fields).keys()


def _column(key: Any) -> str:
    """Returns a column's name as the files of a part can hold it."""
    return caption_text.plain(str(key)).replace("\0", "?")[:200]


def row_of(name: str, fields: Mapping[str, Any], find: Callable[[Path], Path | None]) -> Row | Skipped:
    """Returns the row of a text file that names its picture in a column of `IMAGE_KEYS`.

    Args:
      name: where the row stands.
      find: the file of a path that may be relative; None if there is none.
    """
    path = next((fields[key] for key in IMAGE_KEYS if fields.get(key)), None)
    if not isinstance(path, str):
        return Skipped(name, "no image_path", f"the row has {', '.join(map(str, fields)) or 'no columns'}")
    try:
        file = find(Path(path))
    except (OSError, ValueError) as error:
        # A folder that may not be read, or a data: URL, far too long for a name.
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return Skipped(f"{name}:{path[:200]}", "cannot be read", reason or repr(error))
    name = f"{name}:{path}"
    if file is None:
        return Skipped(name, "no such file")
    captions = captions_of(fields)
    if not captions:
        return Skipped(name, "no caption", f"none of {', '.join((*LONG_KEYS, *SHORT_KEYS))} has words")
    return Row(name, file, captions, scores_of(fields), tuple(sorted(unread_columns(fields))))
