"""The release's splits: a folder of `[h_div_w]_[num].jsonl`, one picture a line (docs/spec.md section 1)."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import logging

from infinity_jax.data.originals.rows import Row, Skipped, part_size, row_of
from infinity_jax.errors import UserError
from infinity_jax.files import reading

MOST_LINE = 1 << 24
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
                line = file.readline(MOST_LINE)
                if len(line) == MOST_LINE and not line.endswith(b"\n"):
                    yield Skipped(f"{self.file.name}:{number}", "not JSON", f"more than {MOST_LINE} bytes")
                    while line and not line.endswith(b"\n"):
                        line = file.readline(MOST_LINE)
                elif line.strip():
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
    starts, position, begins = [], 0, True
    with open(file, "rb") as lines:
        while line := lines.readline(MOST_LINE):
            if begins:
                starts.append(position)
            position, begins = position + len(line), line.endswith(b"\n")
    return starts


def _row(name: str, line: bytes, places: Sequence[Path]) -> Row | Skipped:
    try:
        fields = reading.parse_json(line.decode("utf-8-sig"))
    except ValueError as error:
        return Skipped(name, "not JSON", str(error))
    if not isinstance(fields, dict):
        return Skipped(name, "not JSON", f"not an object but {type(fields).__name__}")
    return row_of(name, fields, lambda path: next((p / path for p in places if (p / path).is_file()), None))
