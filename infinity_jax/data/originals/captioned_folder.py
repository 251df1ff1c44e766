"""A folder of captioned pictures (see `infinity_jax.data.folder`)."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from infinity_jax.data import listing
from infinity_jax.data.originals.rows import Row, Skipped, part_size, row_of


@dataclasses.dataclass(frozen=True)
class FolderPart:
    """Some rows of a folder: number and columns, or why it is no row; `unit` is what the number counts."""

    folder: Path
    rows_read: tuple[listing.Row, ...]
    unit: str = "line"

    def name(self) -> str:
        # A row and one that is skipped both begin with the number.
        rows = self.rows_read
        return f"{self.folder} {self.unit}s {rows[0][0]} to {rows[-1][0]}, {len(rows)} rows"

    def rows(self) -> Iterator[Row | Skipped]:
        for row in self.rows_read:
            if isinstance(row, listing.Skipped):
                kind, _, detail = row.reason.partition(": ")
                yield Skipped(f"{self.unit} {row.line}", kind, detail)
            else:
                yield row_of(f"{self.unit} {row[0]}", row[1], self._find)

    def _find(self, path: Path) -> Path | None:
        return self.folder / path if (self.folder / path).is_file() else None


def find_parts(folder: Path) -> list[FolderPart]:
    """Finds the parts of a folder. UserError if it or its captions are missing or cannot be read."""
    _, unit, listed = listing.read_listing(folder)
    rows = tuple(listed)
    size = part_size(len(rows))
    return [FolderPart(folder, rows[i : i + size], unit) for i in range(0, len(rows), size)]
