"""The index of prepared shards: which files there are, of which ratio, with how many records."""

import dataclasses
import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from infinity_jax.data.prepared.shards import shard_name
from infinity_jax.errors import UserError
from infinity_jax.files import atomic, checksums, reading

FORMAT = 1
INDEX = "index.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file: its part's folder, its ratio, and how many records it has."""

    part: Path
    ratio: str
    count: int

    @property
    def file(self) -> Path:
        """Where its records are."""
        return self.part / shard_name(self.ratio)


@dataclasses.dataclass(frozen=True)
class RecordIndex:
    """What lies in a prepared folder.

    Attributes:
      folder: the folder.
      shards: in a fixed order.
      columns: what `column` knows: height, width, caption (characters of the longest one) and scores.
      features: what made the features that its records hold in place of pictures; {} for pictures.
    """

    folder: Path
    shards: tuple[Shard, ...]
    columns: tuple[str, ...]
    features: Mapping[str, Any]

    def of_ratio(self, ratio: str) -> list[Shard]:
        """Returns the shards of a ratio."""
        return [shard for shard in self.shards if shard.ratio == ratio]

    @property
    def fingerprint(self) -> str:
        """A hash of which records there are."""
        listed = [[shard.part.name, shard.ratio, shard.count] for shard in self.shards]
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:24]

    @property
    def counts(self) -> dict[str, int]:
        """Records of each ratio."""
        counts: dict[str, int] = {}
        for shard in self.shards:
            counts[shard.ratio] = counts.get(shard.ratio, 0) + shard.count
        return counts

    def column(self, name: str, ratio: str) -> Float[np.ndarray, " N"]:
        """Reads a number of each record of a ratio, float32, NaN where it has none. UserError if a file is damaged."""
        return np.concatenate([_numbers(shard, name) for shard in self.of_ratio(ratio)])


def _numbers(shard: Shard, name: str) -> np.ndarray:
    file, key = shard.part / "columns.npz", f"{shard.ratio}/{name}"
    try:
        with open(file, "rb") as stream, np.load(stream) as table:
            numbers = table[key] if key in table else np.full(shard.count, np.nan, np.float32)
        if len(numbers) != shard.count:
            raise ValueError(f"{len(numbers)} numbers of {shard.count} records")
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{file} cannot be read: {error}; prepare the set again") from error
    return numbers


def write(out: Path, parts: Sequence[Path], features: Mapping[str, Any] | None = None) -> None:
    """Writes `out`/index.json from the part.json of all parts."""
    shards, columns = [], set()
    for part in parts:
        tally = read_part(part)
        columns |= set(tally["columns"])
        shards += [[part.name, ratio, count] for ratio, count in sorted(tally["counts"].items())]
    index = {"format": FORMAT, "columns": sorted(columns), "features": dict(features or {}), "shards": shards}
    with checksums.replacing(out, INDEX):  # records and columns have their own
        atomic.write_json(out / INDEX, index)


def read_part(part: Path) -> dict[str, Any]:
    """Reads what the part.json of a part's folder has counted. UserError if it is damaged."""
    remedy = f"remove {part} and give the same prepare command again"
    tally = reading.read_object(part / "part.json", remedy)
    if not (isinstance(tally.get("counts"), dict) and isinstance(tally.get("columns"), list)):
        raise UserError(f"{part / 'part.json'} is damaged, it lacks counts or columns; {remedy}")
    return tally


def read(folder: Path) -> RecordIndex:
    """Reads the index of a prepared folder. Raises UserError if it is missing, unfinished, damaged or empty."""
    checksums.check(folder, [INDEX], "restore it, or prepare the set again")
    try:
        index = json.loads((folder / INDEX).read_text())
        if index["format"] != FORMAT:
            raise UserError(
                f"{folder} has format {index['format']}, this program reads {FORMAT}; prepare it again"
            )
        parts = folder / "parts"
        shards = tuple(Shard(parts / part, ratio, int(count)) for part, ratio, count in index["shards"])
        records = RecordIndex(folder, shards, tuple(index["columns"]), index["features"])
    except FileNotFoundError as error:
        state = "is not finished: give the same prepare command again" if (folder / "source.json").is_file() else (
            "has no index.json: write it with infinity-jax prepare --source ... --out"
        )  # fmt: skip
        raise UserError(f"{folder} {state}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / INDEX} cannot be read ({error!r}); prepare the set again") from error
    if not records.shards:
        raise UserError(f"{folder} holds no picture; {folder / 'report.json'} says why each was skipped")
    return records
