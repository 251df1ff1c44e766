"""From a source to batches, where (seed, step) alone decides the records of a batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import grain
import numpy as np

from infinity_jax.errors import UserError
from infinity_jax.runtime import seeds

Batch = dict[str, np.ndarray]
_ENDLESS = 2**48  # Records: more than any run reads.
READING = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


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
    rows: Sequence[int] | np.ndarray | None = None,
    reading: grain.ReadOptions = READING,
) -> Iterator[Batch]:
    """Yields training batches without end, from step `first_step` on.

    The records stand in one endless row, epoch after epoch, each epoch in its own order that (seed, epoch)
    decides; batch `step` takes places step * batch_size and on, so an epoch may end inside a batch and
    nothing is dropped. Starting at `first_step` reads nothing before it.

    Args:
      transform: maps a record to arrays, in one of the threads of `reading`.
      shuffle: False keeps the order of the source.
      rows: the places of each batch that are read and given, None is all: so the batches are the same however many
        processes read their share.
      reading: how many threads read, and how many batches are kept ready.
    Returns:
      batches whose arrays [b, ...] keep their dtype; str and bytes become object arrays [b].
    Raises:
      UserError: the source or the batch is empty.
    """
    rows = range(batch_size) if rows is None else rows
    if batch_size < 1 or len(rows) == 0:
        raise UserError(
            f"batch size {batch_size}, of which {len(rows)} are read here; both must be at least 1"
        )
    records = endless_records(source, seed if shuffle else None)
    if transform is not None:
        records = records.map(transform)
    places = [int(row) for row in rows]

    def share(step: int) -> Batch:
        return stack([cast(Any, records[step * batch_size + row]) for row in places])

    return prefetched(share, range(first_step, _ENDLESS // batch_size), reading)


def endless_records(source: RandomAccess, seed: int | None) -> grain.MapDataset:
    """Puts the records in one endless row, each epoch in the order that (seed, epoch) decides; None keeps theirs."""
    if len(source) == 0:
        raise UserError("the training split is empty; give a data source with at least one picture")
    records = _records(source)
    if seed is not None:
        # grain adds the epoch to the seed; hashing keeps the epochs of neighbouring seeds apart.
        records = records.shuffle(seed=seeds.seed_of("shuffle", seed))
    # Not repeat() without a number: grain rounds that length to a float, which overflows for a batch of one.
    return records.repeat(_ENDLESS // len(source) + 1)


def prefetched(
    batch: Callable[[int], Batch], steps: range, reading: grain.ReadOptions = READING
) -> Iterator[Batch]:
    """Yields the batches of some steps in order, made by threads ahead of their use."""
    return iter(_records(Computed(batch, steps)).to_iter_dataset(reading))


class Computed:
    """A sequence whose entries a function makes of the numbers of a range when they are asked for."""

    def __init__(self, make: Callable[[int], Mapping[str, Any]], numbers: range):
        self._make, self._numbers = make, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        return self._make(self._numbers[index])


def eval_batches(
    source: RandomAccess, batch_size: int, transform: Callable[[Any], Mapping[str, Any]] | None = None
) -> Iterator[Batch]:
    """Yields one ordered pass over the source in batches of exactly `batch_size`, none of an empty source.

    Adds `valid` bool[batch_size]: false for the copies of the last record that fill up the last batch.
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

    return iter(records.batch(batch_size, batch_fn=pad).to_iter_dataset(READING))


def _records(source: RandomAccess) -> grain.MapDataset:
    # grain's protocol also wants the parameter name `index`.
    return grain.MapDataset.source(cast(Any, source))


def stack(records: Sequence[Mapping[str, Any]]) -> Batch:
    """Stacks records of equal keys into one record of arrays; str and bytes become object arrays."""
    return {key: _stack_values([record[key] for record in records]) for key in records[0]}


def _stack_values(values: list[Any]) -> np.ndarray:
    if isinstance(values[0], (str, bytes)):  # NumPy's own string types drop zero bytes at the end.
        return np.array(values, dtype=object)
    return np.stack([np.asarray(value) for value in values])
