"""A folder of captioned pictures: anybody's own training data.

The captions stand in one file `captions.csv`, `captions.jsonl`, `metadata.csv` or `metadata.jsonl`, in texts beside the
pictures, or are the names of folders, see `listing.read_listing`. A csv file has a header; a jsonl file has one object
a line. The picture's path, relative to the folder, is under `file_name`, `image`, `image_path` or `file`; its caption
under `caption` or `text`.

Every picture is decoded once when the folder is opened first; the findings are kept under the data folder
and hold as long as a file's size and time of change stay the same. Rows without caption, bad lines and
pictures that are missing or broken are left out, counted, and logged.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from infinity_jax.data import pictures, svg
from infinity_jax.data.captions import plain
from infinity_jax.data.listing import CAPTION_KEYS, FILE_KEYS, Skipped, read_listing
from infinity_jax.data.records import Record, fraction
from infinity_jax.errors import UserError
from infinity_jax.files import atomic

VALIDATION_SHARE = 0.05
SMALLEST_WITH_VALIDATION = 20


class Entry(NamedTuple):
    """One usable row: its number, the picture's path relative to the folder, and its caption."""

    line: int
    file: str
    caption: str


class FolderSource:
    """One split of a folder, see `split_entries`. Raises UserError if nothing in the folder is usable."""

    def __init__(self, folder: Path, split: str, data_dir: Path):
        self._folder, self._data_dir = folder, data_dir
        self._entries = split_entries(usable_entries(folder, data_dir, log=split == "train"))[split]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int, /) -> Record:
        entry = self._entries[index]
        try:
            image = svg.read_picture(self._folder / entry.file, self._data_dir)
        except (OSError, pictures.BrokenPicture) as error:
            reason = error.strerror if isinstance(error, OSError) else error.detail
            raise UserError(
                f"{self._folder / entry.file} cannot be read any more ({reason}); "
                "put the picture back or start again without it"
            ) from error
        return {"image": image, "caption": entry.caption, "id": f"{entry.file}:{entry.line}"}


def usable_entries(folder: Path, data_dir: Path, log: bool = True) -> list[Entry]:
    """Reads all rows with a caption and a whole picture, in the file's order; if `log`, each other row is logged.

    Raises UserError if the folder or its captions file is missing or nothing is usable.
    """
    place, unit, listed = read_listing(folder)
    rows = [row if isinstance(row, Skipped) else _entry(*row) for row in listed]
    entries = [row for row in rows if isinstance(row, Entry)]
    skipped = [row for row in rows if isinstance(row, Skipped)]
    faults = check_pictures(folder, sorted({entry.file for entry in entries}), data_dir)
    skipped += [Skipped(e.line, f"{e.file}: {faults[e.file]}") for e in entries if faults[e.file]]
    for row in sorted(skipped) if log else ():
        logging.warning("%s, %s %d skipped: %s", place, unit, row.line, row.reason)
    if skipped and log:
        logging.warning("%s: %d of %d rows skipped", place, len(skipped), len(rows))
    usable = [entry for entry in entries if not faults[entry.file]]
    if not usable:
        first = (
            f"; the first of {len(skipped)}, {unit} {min(skipped).line}: {min(skipped).reason}"
            if skipped
            else ""
        )
        raise UserError(
            f"{place} names no usable picture{first}. Each row needs a picture ({' or '.join(FILE_KEYS)}, "
            f"relative to {folder}) and its caption ({' or '.join(CAPTION_KEYS)})"
        )
    return usable


def split_entries(entries: list[Entry]) -> dict[str, list[Entry]]:
    """Splits entries by a hash of the file name, so that a picture keeps its side when others are added.

    About 5% are validation: at least one from 20 pictures on, none below. `compositions` is always empty.
    """
    order = sorted({entry.file for entry in entries}, key=fraction)
    held_out: set[str] = set()
    if len(order) >= SMALLEST_WITH_VALIDATION:
        held_out = {file for file in order if fraction(file) < VALIDATION_SHARE} or {order[0]}
    return {
        "train": [entry for entry in entries if entry.file not in held_out],
        "validation": [entry for entry in entries if entry.file in held_out],
        "compositions": [],
    }


def _entry(line: int, row: dict[str, Any]) -> Entry | Skipped:
    file = next((row[key] for key in FILE_KEYS if row.get(key)), None)
    caption = next((row[key] for key in CAPTION_KEYS if row.get(key)), None)
    if not isinstance(file, str):
        return Skipped(line, f"no picture ({' or '.join(FILE_KEYS)})")
    if not isinstance(caption, str) or not caption.strip():
        return Skipped(line, f"{file}: no caption ({' or '.join(CAPTION_KEYS)})")
    return Entry(line, file, " ".join(plain(caption).split()))


def check_pictures(folder: Path, files: list[str], data_dir: Path) -> dict[str, str]:
    """Finds what is wrong with each picture, "" if nothing; only what is new or changed is decoded."""
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    cache = data_dir / "folder_checks" / f"{name}.json"
    known = _read_cache(cache)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = pool.map(lambda file: _check(folder / file, known.get(file), data_dir), files)
        checks = dict(zip(files, found, strict=True))
    if checks != known:
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_text(cache, json.dumps(checks))
        except OSError as error:
            logging.warning(
                "cannot keep the findings in %s (%s): pictures are checked again next time", cache, error
            )
    return {file: reason for file, (_, _, reason) in checks.items()}


def _check(picture: Path, known: list | None, data_dir: Path) -> list:
    """Returns [time of change in ns, size in bytes, fault]; `known` is what an earlier run found."""
    stamp = [0, 0]
    try:
        status = picture.stat()
        stamp = [status.st_mtime_ns, status.st_size]
        if known is not None and known[:2] == stamp:
            return known
        pictures.decode_rgb(svg.read_picture(picture, data_dir))
    except (FileNotFoundError, NotADirectoryError):
        return [0, 0, "no such file"]
    except (OSError, ValueError) as error:
        return [*stamp, str(error)]
    return [*stamp, ""]


def _read_cache(cache: Path) -> dict[str, list]:
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):  # Absent or damaged: everything is checked again.
        return {}
    return known if isinstance(known, dict) else {}
