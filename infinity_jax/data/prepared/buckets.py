"""Which pictures make up a step, where every batch holds one aspect ratio: arithmetic alone, nothing is read.

An epoch is as many pictures as the sets hold together. In an epoch each bucket (one aspect ratio) has a quota of
pictures, and its pictures stand in one endless row, epoch after epoch. Batch i of a bucket takes the places
i * batch_size and on of that row, so what is left of a bucket at the end of an epoch opens its next batch: nothing
is dropped and nothing repeated. In epoch e a bucket of quota q has floor((e + 1) q / B) - floor(e q / B) batches,
and (seed, e) alone decides how the batches of all buckets follow each other. Any step is found at once.
"""

import dataclasses
import functools
from collections.abc import Sequence

import grain
import numpy as np

from infinity_jax.errors import UserError
from infinity_jax.runtime import seeds

# Permutations up to this length are kept; `index_shuffle` takes milliseconds for the shortest, microseconds for longer.
_SMALL = 1 << 14


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The pictures of one aspect ratio.

    Attributes:
      ratio: "height:width".
      sizes: how many each set has.
      quotas: how many each set gives in an epoch; the same numbers if the sets are not weighted.
    """

    ratio: str
    sizes: tuple[int, ...]
    quotas: tuple[int, ...]

    @functools.cached_property
    def quota(self) -> int:
        """Pictures of this ratio in an epoch."""
        return sum(self.quotas)


def make_buckets(counts: Sequence[dict[str, int]], weights: Sequence[float] | None = None) -> list[Bucket]:
    """Makes one bucket for each ratio that has pictures.

    Args:
      counts: of each set, how many pictures it has of each ratio.
      weights: how often pictures of each set are seen, relative to the others; None: each as often as it is large.
    Raises:
      UserError: a set is empty, or a weight is not above 0.
    """
    totals = [sum(count.values()) for count in counts]
    if not totals or min(totals) == 0:
        raise UserError("a set of pictures is empty; prepare it again, or loosen the filters of config.data")
    if weights is None:
        shares = [1.0] * len(counts)
    else:
        if len(weights) != len(counts) or min(weights) <= 0:
            raise UserError(f"the weights of the sets are {list(weights)}; each must be above 0")
        shares = [sum(totals) * w / sum(weights) / n for w, n in zip(weights, totals, strict=True)]
    buckets = []
    for ratio in sorted({ratio for count in counts for ratio in count if count[ratio]}):
        sizes = tuple(count.get(ratio, 0) for count in counts)
        quotas = tuple(max(1, round(n * s)) if n else 0 for n, s in zip(sizes, shares, strict=True))
        buckets.append(Bucket(ratio, sizes, quotas))
    return buckets


@dataclasses.dataclass(frozen=True)
class Picture:
    """A place of a batch: picture `index` of those that set `part` has of the ratio, seen for the `seen`-th time."""

    part: int
    index: int
    seen: int


class BucketOrder:
    """The batches of all steps, decided by (seed, step); the same on every process."""

    def __init__(self, buckets: Sequence[Bucket], batch_size: int, seed: int):
        if batch_size < 1:
            raise UserError(f"batch size {batch_size} must be at least 1")
        if not buckets:
            raise UserError("there are no pictures to make batches of; give a set with at least one")
        self.buckets, self.batch_size, self.seed = tuple(buckets), batch_size, seed
        self._total = sum(bucket.quota for bucket in buckets)
        self._batches_before = functools.lru_cache(64)(self._count_batches_before)

    def first_step(self, epoch: int) -> int:
        """Returns the step (0-based) at which an epoch begins."""
        return self._batches_before(epoch)[-1]

    def batch(self, step: int) -> tuple[Bucket, int]:
        """Finds the bucket of a step, and which of the bucket's batches it is."""
        epoch = self._epoch(step)
        begin, end = self._batches_before(epoch), self._batches_before(epoch + 1)
        place = _shuffled(step - begin[-1], end[-1] - begin[-1], f"steps/{epoch}", self.seed)
        number = 0
        while place >= end[number] - begin[number]:
            place -= end[number] - begin[number]
            number += 1
        return self.buckets[number], begin[number] + place

    def pictures(self, step: int, rows: Sequence[int] | np.ndarray) -> tuple[str, list[Picture]]:
        """Finds the ratio of a step and the pictures in some rows of its batch."""
        bucket, number = self.batch(step)
        return bucket.ratio, [self._picture(bucket, number * self.batch_size + int(row)) for row in rows]

    def _picture(self, bucket: Bucket, place: int) -> Picture:
        """Finds the picture at a place of a bucket's endless row: an epoch's pictures of all sets, shuffled."""
        epoch, place = divmod(place, bucket.quota)
        place = _shuffled(place, bucket.quota, f"row/{bucket.ratio}/{epoch}", self.seed)
        part = 0
        while place >= bucket.quotas[part]:
            place -= bucket.quotas[part]
            part += 1
        # Each set has a row of its own, in which all its pictures come once before any comes again.
        seen, place = divmod(epoch * bucket.quotas[part] + place, bucket.sizes[part])
        name = f"set/{bucket.ratio}/{part}/{seen}"
        return Picture(part, _shuffled(place, bucket.sizes[part], name, self.seed), seen)

    def _count_batches_before(self, epoch: int) -> tuple[int, ...]:
        """Counts the batches that each bucket has before an epoch, and all of them together."""
        counts = [bucket.quota * epoch // self.batch_size for bucket in self.buckets]
        return (*counts, sum(counts))

    def _epoch(self, step: int) -> int:
        """Finds the last epoch that begins at `step` or before; one without batches is passed over."""
        # Each bucket may be behind by less than a batch, so the epoch is at most that much later.
        low = step * self.batch_size // self._total
        high = (step + len(self.buckets) + 1) * self.batch_size // self._total + 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.first_step(middle) <= step else (low, middle)
        return low


def _shuffled(index: int, count: int, name: str, seed: int) -> int:
    """Finds where `index` goes in a permutation of range(count) that `name` and `seed` decide."""
    hashed = seeds.seed_of(name, seed)
    if count <= _SMALL:
        return int(_permutation(count, hashed)[index])
    return int(grain.experimental.index_shuffle(index, max_index=count - 1, seed=hashed, rounds=4))


@functools.lru_cache(512)
def _permutation(count: int, seed: int) -> np.ndarray:
    # Raw numbers of a bit generator are the same in every version of NumPy; what is drawn from them is not.
    return np.argsort(np.random.PCG64(seed).random_raw(count), kind="stable").astype(np.uint16)
