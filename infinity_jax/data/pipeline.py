"""From a source to batches, where (seed, step) alone decides the records of a batch."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import grain
import numpy as np

from infinity_jax.errors import UserError

Batch = dict[str, np.ndarray]
_ENDLESS = 2**48  # Records: more than any run reads.


@runtime_checkable
class RandomAccess(Protocol):
    """A sequence of dicts: a `Source`, or records that are already arrays (for example encoded features)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


def batches(
    source: RandomAccess,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    transform: Callable[[Any], Mapping[str, Any]] | None = None,
    shuffle: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    prefetch: int = 4,
) -> Iterator[Batch]:
    """Endless training batches, from step `first_step` on.

    The records stand in one endless row, epoch after epoch, each epoch in its own order that (seed, epoch)
    decides; batch `step` takes places step * batch_size and on, so an epoch may end inside a batch and
    nothing is dropped. Starting at `first_step` reads nothing before it. `batch_size` is the size over all
    processes; each process gets (and reads) its contiguous slice of batch_size / process_count. `transform`
    maps a record to arrays in one of `threads` threads; `prefetch` batches are kept ready. Arrays [b, ...]
    keep their dtype; str and bytes become object arrays [b]. Raises UserError for an empty source or sizes
    that do not divide.
    """
    if len(source) == 0:
        raise UserError("the training split is empty; give a data source with at least one picture")
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch size {batch_size} cannot be shared by {process_count} processes; use a positive multiple"
        )
    records = _records(source)
    if shuffle:
        # grain adds the epoch to the seed; hashing keeps the epochs of neighbouring seeds apart.
        records = records.shuffle(seed=zlib.crc32(f"shuffle/{seed}".encode()))
    # Not repeat() without a number: grain rounds that length to a float, which overflows for a batch of one.
    records = records.repeat(_ENDLESS // len(source) + 1)
    if transform is not None:
        records = records.map(transform)
    shares = records.batch(batch_size // process_count, batch_fn=stack)
    mine = shares.slice(slice(first_step * process_count + process_index, None, process_count))
    return iter(mine.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)))


def eval_batches(
    source: RandomAccess,
    batch_size: int,
    transform: Callable[[Any], Mapping[str, Any]] | None = None,
    *,
    threads: int = 2,
    prefetch: int = 4,
) -> Iterator[Batch]:
    """One ordered pass over the source in batches of exactly `batch_size`.

    Adds `valid` bool[batch_size]: false for the copies of the last record that fill up the last batch.
    An empty source gives no batch.
    """
    if len(source) == 0:
        return iter(())
    records = _records(source)
    if transform is not None:
        records = records.map(transform)

    def pad(records: Sequence[Mapping[str, Any]]) -> Batch:
        missing = batch_size - len(records)
        batch = stack([*records, *[records[-1]] * missing])
        return batch | {"valid": np.arange(batch_size) < len(records)}

    padded = records.batch(batch_size, batch_fn=pad)
    return iter(padded.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)))


def _records(source: RandomAccess) -> grain.MapDataset:
    return grain.MapDataset.source(
        cast(Any, source)
    )  # grain's protocol also wants the parameter name `index`.


def stack(records: Sequence[Mapping[str, Any]]) -> Batch:
    """A list of records of equal keys as one record of stacked arrays; str and bytes become object arrays."""
    return {key: _stack_values([record[key] for record in records]) for key in records[0]}


def _stack_values(values: list[Any]) -> np.ndarray:
    if isinstance(values[0], (str, bytes)):  # NumPy's own string types drop zero bytes at the end.
        return np.array(values, dtype=object)
    return np.stack([np.asarray(value) for value in values])
