"""Batches of one aspect ratio each from prepared shards, ready before they are asked for."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np

from infinity_jax.data import batches as pipeline
from infinity_jax.data import pictures
from infinity_jax.data.batches import Batch
from infinity_jax.data.prepared.buckets import BucketOrder, Picture
from infinity_jax.data.prepared.record_set import MixedRecords
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
    finish: Callable[[Batch], Batch] = lambda batch: batch,
    threads: int = 2,
) -> Iterator[Batch]:
    """Endless batches from step `first_step` on, of each only its places `rows`.

    (seed, step, row) alone decides what is in a place, so any number of processes reads the same batches.

    Args:
      transform: makes the record of a picture ready, in one of `threads` threads.
      finish: what is done with a whole batch then, for example the encoding of its captions.
    """
    pool = ThreadPoolExecutor(threads)

    def read(ratio: str, picture: Picture) -> Mapping[str, Any]:
        record = records.read(ratio, picture.part, picture.index)
        try:
            return transform(ratio, record, random.Random(f"{order.seed}/{ratio}/{picture}"))
        except pictures.BrokenPicture as error:
            folder = records.sets[picture.part].index.folder
            raise UserError(
                f"{record['id']} in {folder}: {error}; its shard has changed, prepare it again"
            ) from error

    def batch(step: int) -> Batch:
        ratio, chosen = order.pictures(step, rows)
        return finish(pipeline.stack(list(pool.map(lambda picture: read(ratio, picture), chosen))))

    # The threads share the pictures of a batch, so that few batches are under way at a time.
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return pipeline.prefetched(batch, range(first_step, _ENDLESS), reading)
