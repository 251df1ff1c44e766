"""Prepared shards as they are trained on: filtered, in buckets, several sets mixed. Only indices are read at start."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from infinity_jax.data.prepared import index as record_index
from infinity_jax.data.prepared import shards
from infinity_jax.data.prepared.buckets import Bucket, make_buckets
from infinity_jax.data.prepared.config import Limit, parse_sets
from infinity_jax.data.prepared.index import RecordIndex
from infinity_jax.data.records import Record
from infinity_jax.errors import UserError
from infinity_jax.files import atomic


class RecordSet:
    """One prepared folder, of which each ratio's records that pass the filters are numbered from 0."""

    def __init__(self, index: RecordIndex, limits: Sequence[Limit] = ()):
        self.index = index
        self._shards = {ratio: index.of_ratio(ratio) for ratio in index.counts}
        self._ends = {ratio: np.cumsum([s.count for s in found]) for ratio, found in self._shards.items()}
        # The numbers of those that pass, of each ratio; None where all do.
        self._kept = {ratio: _passing(index, ratio, limits) if limits else None for ratio in self._shards}

    @property
    def counts(self) -> dict[str, int]:
        """Records of each ratio that pass the filters."""
        return {
            ratio: count if (kept := self._kept[ratio]) is None else len(kept)
            for ratio, count in self.index.counts.items()
        }

    def read(self, ratio: str, number: int) -> dict[str, Any]:
        """Reads record `number` of a ratio: id, captions, and image (bytes) or features. UserError if it is damaged."""
        kept = self._kept[ratio]
        number = number if kept is None else int(kept[number])
        place = int(np.searchsorted(self._ends[ratio], number, side="right"))
        shard = self._shards[ratio][place]
        return shards.read(shard.file, number - (int(self._ends[ratio][place]) - shard.count))


def _passing(index: RecordIndex, ratio: str, limits: Sequence[Limit]) -> np.ndarray:
    passing = np.ones(index.counts[ratio], bool)
    for limit in limits:
        if limit.column not in index.columns:
            raise UserError(
                f"{index.folder} has no column {limit.column!r} to filter by; it has {', '.join(index.columns)}"
            )
        values = index.column(limit.column, ratio)
        passing &= (values >= limit.least) & (values <= limit.most)  # a missing number, NaN, fails both
    return np.flatnonzero(passing).astype(np.uint32)


class MixedRecords:
    """One or several prepared folders with their buckets."""

    def __init__(self, source: str, limits: Sequence[Limit] = ()):
        """Opens `source`, "records:DIR" or several with weights, see `config.parse_sets`.

        Raises:
          UserError: a folder is missing, unfinished or of another kind than the others; no picture passes.
        """
        folders, weights = zip(*parse_sets(source), strict=True)
        self.sets = [RecordSet(record_index.read(folder), limits) for folder in folders]
        features = [dict(record_set.index.features) for record_set in self.sets]
        if any(other != features[0] for other in features):
            raise UserError(
                f"the sets of {source!r} do not hold the same: pictures, or features of the same encoders; "
                "make features of all of them alike (infinity-jax prepare --features)"
            )
        self.features: Mapping[str, Any] = features[0]
        for record_set in self.sets:
            kept, all_ = sum(record_set.counts.values()), sum(record_set.index.counts.values())
            if kept == 0:
                raise UserError(
                    f"no picture of {record_set.index.folder} passes the filters; loosen those of config.data"
                )
            if limits:
                logging.info("%s: %d of %d pictures pass the filters", record_set.index.folder, kept, all_)
        self.buckets: list[Bucket] = make_buckets(
            [record_set.counts for record_set in self.sets], None if weights[0] is None else weights
        )

    def __len__(self) -> int:
        return sum(bucket.quota for bucket in self.buckets)

    @property
    def fingerprint(self) -> str:
        """A hash of what decides the order: the records of each set that pass the filters, and the weights."""
        listed = (
            [record_set.index.fingerprint for record_set in self.sets],
            [str(bucket) for bucket in self.buckets],
        )
        return hashlib.sha256(str(listed).encode()).hexdigest()[:24]

    def note(self, workdir: Path) -> None:
        """Keeps the fingerprint in a run's folder; warns of a run that resumes with other records."""
        file = workdir / "records.json"
        try:
            before = json.loads(file.read_text())["fingerprint"]
        except (OSError, ValueError, KeyError):
            before = self.fingerprint
        if before != self.fingerprint:
            logging.warning(
                "the records, filters or weights are not those that the run in %s began with: until the present pass "
                "over them ends, some pictures come twice and some not at all",
                workdir,
            )
        workdir.mkdir(parents=True, exist_ok=True)
        atomic.write_json(file, {"fingerprint": self.fingerprint})

    def read(self, ratio: str, part: int, number: int) -> dict[str, Any]:
        """Reads record `number` that set `part` has of a ratio."""
        return self.sets[part].read(ratio, number)


class RecordSource:
    """Prepared pictures as a `Source`, in a fixed order, for what wants pictures of one size."""

    def __init__(self, records: MixedRecords):
        self._records = records
        self._places = [
            (ratio, part, count)
            for part, found in enumerate(records.sets)
            for ratio, count in sorted(found.counts.items())
        ]
        self._ends = np.cumsum([count for _, _, count in self._places])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int, /) -> Record:
        record = self._read(index)
        if "image" not in record:
            raise UserError(
                f"record {record['id']} holds features and no picture; give the shards that they were made of"
            )
        return {"image": record["image"], "caption": _caption(record), "id": record["id"]}

    def caption(self, index: int) -> str:
        """Returns the caption of a record, which those of features have too."""
        return _caption(self._read(index))

    def _read(self, index: int) -> dict[str, Any]:
        place = int(np.searchsorted(self._ends, index, side="right"))
        ratio, part, count = self._places[place]
        record = self._records.read(ratio, part, index - (int(self._ends[place]) - count))
        return {**record, "id": f"{part}:{record['id']}"}


def _caption(record: Mapping[str, Any]) -> str:
    captions = record["captions"]
    return next(captions[kind][0] for kind in ("short", "long") if kind in captions)
