"""The runs table: a CSV file with one row a run, which `sweep` writes, a user may edit, and `scaling` reads."""

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from infinity_jax.errors import UserError
from infinity_jax.files import atomic

STATUSES = ("planned", "does not fit", "running", "done", "failed")
METRICS = ("kid", "retrieval_top1", "retrieval_top5")
METRIC_PREFIX = "metric_"

_WHOLE, _REAL = "a whole number", "a number"
_SERIES, _CURVE = "numbers with spaces between", "STEP:LOSS with spaces between"
_KINDS = {
    **dict.fromkeys(("name", "status", "error", "size", "vocabulary", "length"), "text"),
    **dict.fromkeys(
        ("seed", "parameters", "layers", "width", "heads", "bits", "batch_size", "steps"), _WHOLE
    ),
    **dict.fromkeys(("pictures", "tokens", "flop"), _WHOLE),
    "learning_rate": _REAL,
    "rate_schedule": "text",
    **dict.fromkeys(("train_loss", "validation_loss", "bit_accuracy"), _REAL),
    "validation_loss_per_scale": _SERIES,
    "validation_curve": _CURVE,
    **dict.fromkeys(("kid", "kid_error", "retrieval_top1", "retrieval_top5"), _REAL),
    **dict.fromkeys(("seconds", "pictures_per_second"), _REAL),
    "memory": _WHOLE,
    "estimated_seconds": _REAL,
    "commit": "text",
    "device": "text",
}
COLUMNS = tuple(_KINDS)
_POSITIVE = ("parameters", "batch_size", "steps", "pictures", "tokens", "flop")


def write(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes the table, whole or not at all.

    Args:
      rows: values by column: text, numbers, a list of numbers (validation_loss_per_scale) or {step: loss}
        (validation_curve). None, or a column that a row lacks, is an empty cell. Columns that are not in COLUMNS come
        after them.
    Raises:
      OSError: the file cannot be written.
    """
    path, rows = Path(path), list(rows)
    columns = [*COLUMNS, *dict.fromkeys(column for row in rows for column in row if column not in COLUMNS)]
    with atomic.writing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({column: _text(row.get(column)) for column in columns} for row in rows)


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the rows of a table, in order, as `write` takes them.

    An empty cell, and a column of COLUMNS that the file lacks, is None. Of other columns, one that holds numbers
    becomes float, any other stays text.

    Raises:
      UserError: no such file, it is no such table, or a cell holds what its column cannot.
    """
    path = Path(path)
    lines = _lines(path)
    header = [column.strip() for column in lines[0][1]] if lines else []
    _check_header(path, header)
    rows = []
    for number, cells in lines[1:]:
        if len(cells) > len(header):
            raise UserError(
                f"{path}, line {number}: {len(cells)} cells, but {len(header)} columns; mend the line"
                " (a cell with a comma needs quotes around it)"
            )
        texts = {column: cell.strip() for column, cell in zip(header, cells, strict=False) if column}
        rows.append(_row(texts, f"{path}, line {number}"))
    for column in header:
        if column and column not in COLUMNS:
            _read_extra(path, column, rows)
    return rows


def metric_columns(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Finds the generation metrics that any row has: METRICS, and columns of numbers that are not in COLUMNS."""
    rows = list(rows)
    columns = dict.fromkeys(column for row in rows for column in row)
    return tuple(
        column
        for column in columns
        if (column in METRICS or column not in COLUMNS)
        and any(isinstance(row.get(column), float) for row in rows)
    )


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    try:
        # A spreadsheet may put a byte order mark first, which utf-8-sig takes away.
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"there is no table {path}; give the runs.csv of a sweep") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file in UTF-8: {error}; save it as one") from None


def _check_header(path: Path, header: list[str]) -> None:
    if missing := [column for column in ("name", "status") if column not in header]:
        raise UserError(
            f"{path} has no column {' and no column '.join(missing)}, only {', '.join(header) or 'nothing'};"
            " give the runs.csv of a sweep, a CSV file with commas whose first line names the columns"
        )
    if twice := sorted({column for column in header if column and header.count(column) > 1}):
        raise UserError(f"{path} has the column {twice[0]!r} twice; remove one")


def _row(texts: Mapping[str, str], where: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        column: _value(column, texts.get(column, ""), kind, where) for column, kind in _KINDS.items()
    }
    row |= {column: text or None for column, text in texts.items() if column not in COLUMNS}
    if row["status"] not in STATUSES:
        raise UserError(f"{where}: status {row['status']!r} is none of {', '.join(STATUSES)}; mend it")
    for column in _POSITIVE:
        if row[column] is not None and row[column] <= 0:
            raise UserError(f"{where}: {column} {row[column]} is not above 0; mend it or empty the cell")
    return row


def _value(column: str, text: str, kind: str, where: str) -> Any:
    if not text:
        return None
    try:
        if kind == _WHOLE:
            return _whole(text)
        if kind == _REAL:
            return float(text)
        if kind == _SERIES:
            return [float(part) for part in text.split()]
        if kind == _CURVE:
            steps = (part.split(":") for part in text.split())
            return {_whole(step): float(loss) for step, loss in steps}
    except (ValueError, OverflowError):
        raise UserError(f"{where}: {column} {text!r} is not {kind}; mend it or empty the cell") from None
    return text


def _whole(text: str) -> int:
    """Reads an int, exact; also from text like 1e18 or 64.0, which a spreadsheet makes of it."""
    if text.lstrip("+-").isdecimal():
        return int(text)
    if not (value := float(text)).is_integer():
        raise ValueError(text)
    return int(value)


def _read_extra(path: Path, column: str, rows: list[dict[str, Any]]) -> None:
    """Makes floats of a column that holds numbers."""
    cells = [row.get(column) for row in rows if row.get(column) is not None]
    numbers = {cell: number for cell in cells if (number := _number(cell)) is not None}
    if not numbers and not column.startswith(METRIC_PREFIX):
        return
    if wrong := [cell for cell in cells if cell not in numbers]:
        raise UserError(f"{path}: {column} {wrong[0]!r} is not a number; mend it or empty the cell")
    for row in rows:
        row[column] = numbers.get(row.get(column))


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _short(number: float | int | None) -> str:
    """Writes six digits; "nan" for None, which metrics have for what is not finite."""
    return "nan" if number is None else f"{number:.6g}"


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return " ".join(f"{step}:{_short(loss)}" for step, loss in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(_short(item) for item in value)
    return str(value)
