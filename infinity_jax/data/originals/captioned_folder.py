"""A folder of pictures with a captions file (see `infinity_jax.data.folder`)."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infinity_jax.data import folder as folder_module
from infinity_jax.data.originals.rows import Row, Skipped, part_size, row_of


@dataclasses.dataclass(frozen=True)
class FolderPart:
    """Some rows of the captions file: line and columns, or why it is no row."""

    folder: Path
    rows_read: tuple[tuple[int, dict[str, Any]] | folder_module.Skipped, ...]

    def name(self) -> str:
        # A row and one that is skipped both begin with the line.
        return f"{self.folder} lines {self.rows_read[0][0]} to {self.rows_read[-1][0]}, {len(self.rows_read)} rows"

    def rows(self) -> Iterator[Row | Skipped]:
        for row in self.rows_read:
            if isinstance(row, folder_module.Skipped):
                kind, _, detail = row.reason.partition(": ")
                yield Skipped(f"line {row.line}", kind, detail)
            else:
                yield row_of(f"line {row[0]}", row[1], self._find)

    def _find(self, path: Path) -> Path | None:
        return self.folder / path if (self.folder / path).is_file() else None


def find_parts(folder: Path) -> list[FolderPart]:
    """Finds the parts of a folder. UserError if it or its captions file is missing or cannot be read."""
    rows = tuple(folder_module.read_rows(folder_module.find_captions(folder)))
    size = part_size(len(rows))
    return [FolderPart(folder, rows[i : i + size]) for i in range(0, len(rows), size)]
