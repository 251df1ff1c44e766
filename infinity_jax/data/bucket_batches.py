"""Batches of one aspect ratio each from prepared shards, ready before they are asked for."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import grain
import numpy as np

from infinity_jax.data import pictures
from infinity_jax.data.buckets import BucketOrder, Picture
from infinity_jax.data.captions import choose
from infinity_jax.data.pipeline import Batch, stack
from infinity_jax.data.record_config import DataConfig
from infinity_jax.data.record_set import MixedRecords
from infinity_jax.errors import UserError

_ENDLESS = 2**48
# (ratio, record, random numbers of this picture at this time) -> arrays and text.
Transform = Callable[[str, dict[str, Any], random.Random], Mapping[str, Any]]


def batches(
    records: MixedRecords,
    order: BucketOrder,
    transform: Transform,
    rows: Sequence[int] | np.ndarray,
    first_step: int = 0,
    threads: int = 2,
    prefetch: int = 2,
) -> grain.IterDataset[Batch]:
    """Endless batches from step `first_step` on, of each only its places `rows`.

    (seed, step, row) alone decides what is in a place, so any number of processes reads the same batches.

    Args:
      transform: makes the record of a picture ready, in one of `threads` threads.
      prefetch: batches that are kept ready.
    """
    steps = _Steps(records, order, transform, [int(row) for row in rows], threads)
    ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
    return grain.MapDataset.source(cast(Any, steps)).slice(slice(first_step, None)).to_iter_dataset(ahead)


class _Steps:
    """The rows of each step's batch, read and transformed in threads."""

    def __init__(
        self, records: MixedRecords, order: BucketOrder, transform: Transform, rows: list[int], threads: int
    ):
        self._records, self._order, self._transform, self._rows = records, order, transform, rows
        self._threads = ThreadPoolExecutor(threads)

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, step: int) -> Batch:
        ratio, chosen = self._order.pictures(step, self._rows)
        return stack(list(self._threads.map(lambda picture: self._read(ratio, picture), chosen)))

    def _read(self, ratio: str, picture: Picture) -> Mapping[str, Any]:
        record = self._records.read(ratio, picture.part, picture.index)
        draw = random.Random(f"{self._order.seed}/{ratio}/{picture}")
        try:
            return self._transform(ratio, record, draw)
        except pictures.BrokenPicture as error:
            folder = self._records.sets[picture.part].index.folder
            raise UserError(f"{record['id']} in {folder}: {error}; its shard has changed, prepare it again") from error


def decoding(sizes: Mapping[str, tuple[int, int]], config: DataConfig) -> Transform:
    """A transform to {image uint8 [H,W,3], caption}.

    Args:
      sizes: (height, width) in pixels of each ratio.
      config: how captions are chosen.
    """

    def transform(ratio: str, record: dict[str, Any], draw: random.Random) -> Mapping[str, Any]:
        height, width = sizes[ratio]
        caption = choose(record["captions"], config.long_captions, config.cut_captions, draw)
        return {"image": pictures.decode(record["image"], height, width), "caption": caption}

    return transform


def with_text(
    dataset: grain.IterDataset[Batch], encode: Callable[[Batch], Batch], prefetch: int = 2
) -> Iterator[Batch]:
    """Batches through `encode`, which runs in a thread of its own ahead of the reader."""
    return iter(grain.experimental.ThreadPrefetchIterDataset(dataset.map(encode), prefetch_buffer_size=prefetch))
