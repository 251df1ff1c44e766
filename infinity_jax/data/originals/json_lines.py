"""The release's splits: a folder of `[h_div_w]_[num].jsonl`, one picture a line (docs/spec.md section 1)."""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import logging

from infinity_jax.data.originals.rows import Row, Skipped, part_size, row_of
from infinity_jax.errors import UserError

_SPLIT = re.compile(r"\d+(?:\.\d+)?_\d+\.jsonl")


@dataclasses.dataclass(frozen=True)
class LinesPart:
    """Lines of one file, from a byte on."""

    file: Path
    first_line: int
    first_byte: int
    lines: int

    def name(self) -> str:
        return f"{self.file} line {self.first_line} +{self.lines} byte {self.first_byte}"

    def rows(self) -> Iterator[Row | Skipped]:
        # Where relative picture paths begin: the file's folder, one above it, or where the command was started.
        # Always in this order, so that what a path means does not depend on the rows before it.
        places = [self.file.parent, *self.file.parent.resolve().parents, Path()]
        with open(self.file, "rb") as file:
            file.seek(self.first_byte)
            for number in range(self.first_line, self.first_line + self.lines):
                line = file.readline()
                if line.strip():
                    yield _row(f"{self.file.name}:{number}", line, places)


def find_parts(folder: Path) -> list[LinesPart]:
    """Finds the parts of all splits in a folder (or of one file). UserError if there are none."""
    files = _files(folder)
    counted = []
    for file in files:
        starts = _line_starts(file)
        announced = int(file.stem.rsplit("_", 1)[1]) if _SPLIT.fullmatch(file.name) else len(starts)
        if announced != len(starts):
            logging.warning("%s has %d lines, its name says %d", file, len(starts), announced)
        counted.append((file, starts))
    size = part_size(sum(len(starts) for _, starts in counted))
    return [
        LinesPart(file, begin + 1, starts[begin], min(size, len(starts) - begin))
        for file, starts in counted
        for begin in range(0, len(starts), size)
    ]


def _files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give jsonl:DIR, a folder of files like 1.000_000002500.jsonl")
    every = sorted(folder.glob("*.jsonl"))
    files = [file for file in every if _SPLIT.fullmatch(file.name)]
    if not files:
        names = ", ".join(file.name for file in every[:5]) or "no .jsonl file"
        raise UserError(
            f"{folder} has no file named [h_div_w]_[num].jsonl, like 1.000_000002500.jsonl; it has {names}"
        )
    for file in sorted(set(every) - set(files)):
        logging.warning("%s is not read: its name is not like 1.000_000002500.jsonl", file)
    return files


def _line_starts(file: Path) -> list[int]:
    starts, position = [], 0
    with open(file, "rb") as lines:
        for line in lines:
            starts.append(position)
            position += len(line)
    return starts


def _row(name: str, line: bytes, places: Sequence[Path]) -> Row | Skipped:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return Skipped(name, "not JSON", str(error))
    if not isinstance(fields, dict):
        return Skipped(name, "not JSON", f"not an object but {type(fields).__name__}")
    return row_of(name, fields, lambda path: next((p / path for p in places if (p / path).is_file()), None))
