"""Which pictures of a folder have which captions: from a captions file, texts beside the pictures, or folder names."""

import csv
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from infinity_jax.errors import UserError

CAPTION_FILES = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")
FILE_KEYS = ("file_name", "image", "image_path", "file")
CAPTION_KEYS = ("caption", "text")
# Files that are taken for pictures where no captions file names them.
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".svg")
TEXT = ".txt"
MOST_CHARACTERS = 10_000  # of a caption in a text of its own


class Skipped(NamedTuple):
    """One row that is left out, and why."""

    line: int
    reason: str


Row = tuple[int, dict[str, Any]] | Skipped


class Listing(NamedTuple):
    """The rows of a folder.

    Attributes:
      place: what lists them: the captions file, or the folder itself.
      unit: what the number of a row counts: "line" or "picture".
      rows: number and columns of each row, or why it is none.
    """

    place: Path
    unit: str
    rows: Iterable[Row]


def read_listing(folder: Path) -> Listing:
    """Finds what gives the captions of a folder, and reads it.

    A captions file wins; else a text beside at least one picture, `cat.txt` beside `cat.png`, whose first line with
    words is the caption; else folders named for what their pictures show. Hidden files and folders are not looked at.

    Raises:
      UserError: no folder, several captions files, none of these forms, or a file that cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give folder:PATH, where PATH is a folder of pictures")
    files = [folder / name for name in CAPTION_FILES if (folder / name).is_file()]
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise UserError(f"{folder} has several captions files ({names}); keep one")
    if files:
        return Listing(files[0], "line", _read_file(files[0]))
    pictures = _find_pictures(folder)
    if any(picture.with_suffix(TEXT).is_file() for picture in pictures):
        return Listing(folder, "picture", _texts_beside(folder, pictures))
    if any(picture.parent != folder for picture in pictures):
        return Listing(folder, "picture", _folder_names(folder, pictures))
    raise UserError(
        f"{folder} has no captions file; add one of {', '.join(CAPTION_FILES)}, or a text beside each picture "
        f"(cat{TEXT} beside cat.png), or put the pictures into folders named for what they show"
    )


def _find_pictures(folder: Path) -> list[Path]:
    pictures: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = (Path(parent, name) for name in names if not name.startswith("."))
        pictures += [file for file in files if file.suffix.lower() in PICTURES]
    return sorted(pictures)


def _texts_beside(folder: Path, pictures: list[Path]) -> Iterator[Row]:
    for number, picture in enumerate(pictures, start=1):
        name, text = picture.relative_to(folder).as_posix(), picture.with_suffix(TEXT)
        if not text.is_file():  # a pipe would keep the reader waiting
            yield Skipped(number, f"no caption: there is no {text.name} beside {name}")
            continue
        try:
            yield number, {FILE_KEYS[0]: name, CAPTION_KEYS[0]: _first_line(text)}
        except (OSError, UnicodeDecodeError) as error:
            yield Skipped(number, f"no caption: {text.name} beside {name} cannot be read: {error}")


def _first_line(text: Path) -> str:
    """Reads the first line with words of a text that may be of any size; "" if the first hundred lines have none."""
    with text.open(encoding="utf-8-sig") as file:
        lines = (file.readline(MOST_CHARACTERS) for _ in range(100))
        return next(filter(str.strip, lines), "")


def _folder_names(folder: Path, pictures: list[Path]) -> Iterator[Row]:
    for number, picture in enumerate(pictures, start=1):
        name = picture.relative_to(folder).as_posix()
        if picture.parent == folder:
            yield Skipped(number, f"no caption: {name} lies beside the folders that give them")
        else:
            yield number, {FILE_KEYS[0]: name, CAPTION_KEYS[0]: picture.parent.name.replace("_", " ")}


def _read_file(captions: Path) -> Iterator[Row]:
    try:
        read = _read_csv if captions.suffix == ".csv" else _read_jsonl
        yield from read(captions)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"cannot read {captions}: {error}; give a UTF-8 {captions.suffix[1:]} file"
        ) from error


def _read_csv(captions: Path) -> Iterator[Row]:
    with open(captions, encoding="utf-8-sig", newline="") as lines:
        # Strict: a quote that is not closed would take the rows behind it into its caption.
        rows = csv.DictReader(lines, strict=True)
        columns = rows.fieldnames or []
        if not set(columns) & set(FILE_KEYS) or not set(columns) & set(CAPTION_KEYS):
            raise UserError(
                f"{captions} has the columns {', '.join(columns) or '(none)'}; "
                f"it needs {' or '.join(FILE_KEYS)}, and {' or '.join(CAPTION_KEYS)}"
            )
        begin = rows.line_num + 1
        try:
            for row in rows:
                if None in row:
                    yield Skipped(
                        rows.line_num, "more columns than the header: quote captions that have commas"
                    )
                else:
                    yield rows.line_num, row
                begin = rows.line_num + 1
        except csv.Error as error:
            raise UserError(
                f"cannot read {captions}: the row that begins in line {begin}: {error}; "
                'close its quotes, and write quotes within a caption twice, ""'
            ) from error


def _read_jsonl(captions: Path) -> Iterator[Row]:
    for number, line in enumerate(captions.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line.decode("utf-8-sig")) if line.strip() else None
        except (ValueError, RecursionError) as error:
            yield Skipped(number, f"not JSON: {error}")
            continue
        if isinstance(row, dict):
            yield number, row
        elif row is not None or line.strip():
            yield Skipped(number, f"not a JSON object: {type(row).__name__}")
