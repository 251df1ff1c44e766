"""The arithmetic of buckets: every picture once, the same for any number of processes, any step found at once."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinity_jax.data.prepared.buckets import BucketOrder, make_buckets
from infinity_jax.errors import UserError

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any)


def order_of(*sets, batch_size=4, seed=0, weights=None):
    """The order of sets, each given as the pictures of the ratios 1:1, 2:1, ..."""
    counts = [{f"{i + 1}:1": n for i, n in enumerate(sizes)} for sizes in sets]
    return BucketOrder(make_buckets(counts, weights), batch_size, seed)


def seen_in(order, steps):
    """How often each (ratio, set, picture) comes in some steps, for each pass."""
    seen = Counter()
    for step in steps:
        ratio, pictures = order.pictures(step, range(order.batch_size))
        seen.update((ratio, p.part, p.index, p.seen) for p in pictures)
    return seen


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 12), st.integers(0, 2**40))
def test_every_picture_comes_once_before_any_comes_again(sizes, batch_size, seed):
    order = order_of(sizes, batch_size=batch_size, seed=seed)
    seen = seen_in(order, range(order.first_step(3)))
    assert set(seen.values()) <= {1}
    for bucket in order.buckets:
        count = bucket.quota
        taken = sum(ratio == bucket.ratio for ratio, *_ in seen)
        # Less than a batch of each bucket waits for the next epoch.
        assert 3 * count - batch_size < taken <= 3 * count
        for turn in range(taken // count):
            assert {index for ratio, _, index, t in seen if (ratio, t) == (bucket.ratio, turn)} == set(
                range(count)
            )


@settings(max_examples=30, deadline=None)
@given(SIZES, st.sampled_from([2, 4, 6, 12]), st.sampled_from([1, 2, 3]), st.integers(0, 50))
def test_any_number_of_processes_sees_the_same_batches(sizes, batch_size, processes, step):
    order, again = order_of(sizes, batch_size=batch_size), order_of(sizes, batch_size=batch_size)
    whole = order.pictures(step, range(batch_size))
    parts = [again.pictures(step, range(i, batch_size, processes)) for i in range(processes)]
    assert {ratio for ratio, _ in parts} == {whole[0]}
    assert [parts[i % processes][1][i // processes] for i in range(batch_size)] == whole[1]


@settings(max_examples=40, deadline=None)
@given(SIZES, st.integers(1, 9), st.integers(0, 10**9))
def test_epochs_are_found_and_ratios_are_in_proportion(sizes, batch_size, far):
    order = order_of(sizes, batch_size=batch_size)
    total = sum(sizes)
    epoch = far // total
    first, following = order.first_step(epoch), order.first_step(epoch + 1)
    assert abs(first - epoch * total / batch_size) <= len(order.buckets)
    drawn = Counter(order.batch(step) for step in range(first, following))
    assert set(drawn.values()) <= {1}
    for bucket in order.buckets:
        batches = sum(b == bucket for b, _ in drawn)
        assert abs(batches - bucket.quota / batch_size) < 1


def test_orders_of_seeds_epochs_and_ratios_differ():
    def row(seed, first):
        order = order_of([64], batch_size=8, seed=seed)
        return tuple(p.index for step in range(first, first + 8) for p in order.pictures(step, range(8))[1])

    rows = [row(seed, first) for seed in (0, 1) for first in (0, 8)]
    assert len(set(rows)) == 4 and all(sorted(row) == list(range(64)) for row in rows)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 300), st.floats(0.05, 20))
def test_weighted_sets_give_their_share_and_repeat_nothing_early(few, many, weight):
    order = order_of([few, few], [many], batch_size=5, weights=(weight, 1.0))
    epochs = 8
    seen = seen_in(order, range(order.first_step(epochs)))
    for part in (0, 1):
        quota = sum(bucket.quotas[part] for bucket in order.buckets)
        share = (weight, 1.0)[part] / (weight + 1)
        assert abs(quota - share * (2 * few + many)) <= 2
        taken = sum(p == part for _, p, _, _ in seen)
        assert abs(taken - epochs * quota) <= 2 * 5 * len(order.buckets) + 5
    # No (picture, turn) comes twice, and a turn begins for a set only when the epoch of its row has.
    assert set(seen.values()) == {1}


def test_one_set_with_a_weight_is_the_same_as_without():
    plain, weighted = order_of([10, 3]), order_of([10, 3], weights=(7.0,))
    assert plain.buckets == weighted.buckets


def test_impossible_sets_are_explained():
    with pytest.raises(UserError, match="a set of pictures is empty"):
        order_of([0, 0])
    with pytest.raises(UserError, match="each must be above 0"):
        order_of([1], [1], weights=(1.0, 0.0))
    with pytest.raises(UserError, match="batch size 0"):
        order_of([1], batch_size=0)


@pytest.mark.parametrize("count", [1, 2, 1000, 1 << 14, (1 << 14) + 1, 40_000])
def test_short_and_long_rows_are_permuted(count):
    order = order_of([count], batch_size=count)
    _, pictures = order.pictures(0, range(count) if count < 2000 else range(0, count, 97))
    indices = [p.index for p in pictures]
    assert len(set(indices)) == len(indices) and all(0 <= i < count for i in indices)
    assert count < 1000 or indices != sorted(indices)
