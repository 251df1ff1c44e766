"""What became of every row of an original: report.json."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infinity_jax import scales
from infinity_jax.data.captions import plain
from infinity_jax.data.originals.rows import Row, Skipped
from infinity_jax.data.prepared import index
from infinity_jax.files import atomic


class Tally:
    """Counts of one part."""

    def __init__(self):
        self._skipped: list[dict[str, str]] = []
        self._lengths: dict[str, Counter[int]] = {}
        self._columns: dict[str, Counter[str]] = {"scores": Counter(), "unread": Counter()}

    def skip(self, row: Skipped) -> None:
        """Counts a row that is left out."""
        self._skipped.append({"id": plain(row.id), "reason": row.kind, "detail": plain(row.detail)})

    def take(self, row: Row) -> None:
        """Counts a row that is kept."""
        for kind, texts in row.captions.items():
            self._lengths.setdefault(kind, Counter()).update(len(text) for text in texts)
        self._columns["scores"].update(row.scores.keys())
        self._columns["unread"].update(row.unread)

    def as_dict(self) -> dict[str, Any]:
        """Returns the counts as part.json holds them."""
        return {
            "skipped": self._skipped,
            "caption_lengths": {kind: sorted(lengths.items()) for kind, lengths in self._lengths.items()},
            "column_counts": {kind: dict(counts) for kind, counts in self._columns.items()},
        }


def write(out: Path, source: str, parts: Sequence[Path]) -> dict[str, Any]:
    """Adds up the parts' tallies into `out`/report.json and returns them."""
    counts, reasons, lengths = Counter(), Counter(), {}
    columns = {"scores": Counter(), "unread": Counter()}
    skipped = []
    for part in parts:
        tally = index.read_part(part)
        counts.update(tally["counts"])
        skipped += tally["skipped"]
        for kind, pairs in tally["caption_lengths"].items():
            lengths.setdefault(kind, Counter()).update(dict(map(tuple, pairs)))
        for kind, number in tally["column_counts"].items():
            columns[kind].update(number)
    reasons.update(row["reason"] for row in skipped)
    summary = {
        "source": source,
        "pictures": sum(counts.values()),
        "by_ratio": {ratio: counts[ratio] for ratio in scales.aspect_ratios() if counts[ratio]},
        "captions": {kind: _lengths(counter) for kind, counter in sorted(lengths.items())},
        "columns": {kind: dict(sorted(counter.items())) for kind, counter in columns.items()},
        "skipped": {"count": len(skipped), "by_reason": dict(reasons.most_common()), "rows": skipped},
    }
    atomic.write_json(out / "report.json", summary)
    return summary


def _lengths(counter: Counter[int]) -> dict[str, int | float]:
    """Summarises how many captions there are and how long they are, in characters."""
    values, numbers = np.array(sorted(counter.items())).T
    at = np.searchsorted(np.cumsum(numbers), np.array([0.5, 0.9]) * numbers.sum())
    return {
        "count": int(numbers.sum()),
        "shortest": int(values[0]),
        "median": int(values[at[0]]),
        "nine_tenths": int(values[at[1]]),
        "longest": int(values[-1]),
        "mean": round(float((values * numbers).sum() / numbers.sum()), 1),
    }
