"""Prepared shards as they are trained on: filters, mixing, batches for any number of processes, damage."""

import logging
import shutil
from collections import Counter
from unittest import mock

import ml_dtypes
import numpy as np
import pytest
from helpers import pictures as synthetic_pictures

from infinity_jax import scales
from infinity_jax.checkpoints.trained import TrainedTokenizer
from infinity_jax.data import feeds, pictures
from infinity_jax.data.feeds import RecordFeed
from infinity_jax.data.prepared import shards as shard_files
from infinity_jax.data.prepared import writer
from infinity_jax.data.prepared.buckets import BucketOrder
from infinity_jax.data.prepared.config import DataConfig, parse_limits, parse_sets
from infinity_jax.data.prepared.record_set import MixedRecords, RecordSource
from infinity_jax.data.records import SPLITS
from infinity_jax.data.sources import open_source
from infinity_jax.errors import UserError
from infinity_jax.text.encoder import TextEncoder

COUNT = 260


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    good, _ = synthetic_pictures.write_release(folder, COUNT, side=40)
    writer.prepare(f"jsonl:{folder / 'splits'}", folder / "out", workers=1)
    return folder / "out", good


def opened(shards, **keys):
    config = DataConfig(f"records:{shards[0]}", "0.02M", **keys)
    return MixedRecords(config.source, config.limits)


def ids(batch):
    return [name.rsplit("/", 1)[-1] for name in batch["id"]]


def reader(records, rows, batch_size=8, first_step=0, seed=3):
    def transform(ratio, record, draw):
        return {"id": record["id"], "ratio": ratio, "draw": np.float64(draw.random())}

    order = BucketOrder(records.buckets, batch_size, seed)
    return feeds.bucket_batches(records, order, transform, rows, first_step), order


def test_two_epochs_with_two_processes_then_four(shards):
    records, seen = opened(shards), Counter()
    halves = [reader(records, rows) for rows in (range(4), range(4, 8))]
    order = halves[0][1]
    stop, end = order.first_step(1) - 5, order.first_step(2)
    for _ in range(stop):
        first, second = (next(stream) for stream, _ in halves)
        assert set(first["ratio"]) == set(second["ratio"]) and len(set(first["ratio"])) == 1
        seen.update(ids(first) + ids(second))
    quarters = [reader(records, range(2 * i, 2 * i + 2), first_step=stop)[0] for i in range(4)]
    for _ in range(stop, end):
        seen.update(name for stream in quarters for name in ids(next(stream)))
    assert seen.keys() <= shards[1]
    # Twice, but for less than a batch of each ratio that waits for the next epoch.
    waiting = sum(2 * bucket.quota % 8 for bucket in order.buckets)
    assert set(seen.values()) <= {1, 2} and sum(seen.values()) == 2 * len(shards[1]) - waiting
    for bucket in order.buckets:
        if bucket.quota < 8:
            continue
        names = {records.read(bucket.ratio, 0, i)["id"].rsplit("/", 1)[-1] for i in range(bucket.quota)}
        assert sum(seen[name] for name in names) == 2 * bucket.quota // 8 * 8


def test_random_choices_belong_to_the_picture_and_not_to_the_process(shards):
    records = opened(shards)
    whole, (half, _) = reader(records, range(8), first_step=7)[0], reader(records, range(4, 8), first_step=7)
    for _ in range(3):
        np.testing.assert_array_equal(next(whole)["draw"][4:], next(half)["draw"])


@pytest.mark.parametrize("cores, threads", [(1, 2), (8, 8), (96, 16), (None, 2)])
def test_training_decodes_on_all_cores(shards, monkeypatch, cores, threads):
    pools, make = [], feeds.ThreadPoolExecutor
    monkeypatch.setattr(feeds, "ThreadPoolExecutor", lambda n: pools.append(n) or make(n))
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    unused = mock.Mock(spec=TrainedTokenizer), mock.Mock(spec=TextEncoder)  # before a batch is asked for
    feed = RecordFeed(opened(shards), None, DataConfig("records:x", "0.02M"), *unused)
    feed.batches(range(8), 8, seed=0, first_step=0)
    assert pools == [threads]


def test_filters(shards):
    everything = opened(shards)
    liked = opened(shards, scores="aesthetic>=8")
    kept = [liked.read(b.ratio, 0, i) for b in liked.buckets for i in range(b.sizes[0])]
    numbers = sorted(int(record["id"].rsplit("/", 1)[-1][:6]) for record in kept)
    assert numbers == [int(n[:6]) for n in sorted(shards[1]) if int(n[:6]) % 10 >= 8]
    large = opened(shards, min_side=45)
    assert 0 < len(large) < len(everything)
    for bucket in large.buckets:
        assert all(
            min(pictures.check(large.read(bucket.ratio, 0, i)["image"])) >= 45 for i in range(bucket.sizes[0])
        )
    assert len(opened(shards, min_caption=10, max_caption=1000)) == len(everything)
    with pytest.raises(UserError, match=r"no picture of .* passes the filters"):
        opened(shards, max_caption=5)
    with pytest.raises(
        UserError, match="no column 'watermark' to filter by; it has aesthetic, caption, height, width"
    ):
        opened(shards, scores="watermark<=0.5")


def test_filters_are_written_as_limits():
    assert [(x.column, x.least, x.most) for x in parse_limits("aesthetic>=5, watermark<=0.5,")] == [
        ("aesthetic", 5.0, float("inf")),
        ("watermark", -float("inf"), 0.5),
    ]
    assert [limit.column for limit in parse_limits("image/id>=5")] == ["image/id"]  # as tfds names columns
    for wrong in ("aesthetic>5", "aesthetic", ">=5"):
        with pytest.raises(UserError, match="write it like"):
            parse_limits(wrong)


def test_sets_are_mixed_by_weight(shards, tmp_path):
    synthetic_pictures.write_release(tmp_path, 30, side=30)
    writer.prepare(f"jsonl:{tmp_path / 'splits'}", tmp_path / "out", workers=1)
    records = MixedRecords(f"records:{shards[0]}@1,records:{tmp_path / 'out'}@1")
    small = sum(bucket.quotas[1] for bucket in records.buckets)
    assert abs(small / len(records) - 0.5) < 0.05
    stream, order = reader(records, range(8))
    ratios = Counter(next(stream)["ratio"][0] for _ in range(order.first_step(1)))
    assert ratios.total() == order.first_step(1) and len(ratios) > 3


def test_a_run_that_goes_on_with_other_records_is_warned(shards, tmp_path, caplog):
    logging.getLogger("absl").propagate = True
    for keys, warned in (
        ({}, False),
        ({}, False),
        ({"scores": "aesthetic>=5"}, True),
        ({"scores": "aesthetic>=5"}, False),
    ):
        caplog.clear()
        opened(shards, **keys).note(tmp_path / "run")
        assert ("some pictures come twice" in caplog.text) == warned


def test_names_of_sets():
    assert [(str(path), weight) for path, weight in parse_sets("records:a@2,records:b@0.5")] == [
        ("a", 2.0),
        ("b", 0.5),
    ]
    assert parse_sets("records:a b")[0][1] is None
    for wrong, words in {
        "records:a@2,records:b": "weights for some sets only",
        "records:a,folder:b": "does not begin with 'records:'",
        "records:": "names no folder",
    }.items():
        with pytest.raises(UserError, match=words):
            parse_sets(wrong)
    with pytest.raises(UserError, match=r"data\.validation 'b': 'b' does not begin with 'records:'"):
        DataConfig("records:a", "0.02M", validation="b")


def test_records_are_a_source_too(shards):
    source = open_source(f"records:{shards[0]}", "train")
    assert isinstance(source, RecordSource) and len(source) == len(shards[1])
    records = [source[i] for i in range(len(source))]
    assert len({record["id"] for record in records}) == len(shards[1])
    assert records[5]["caption"].startswith("picture ") and pictures.decode(
        records[5]["image"], 8, 8
    ).shape == (8, 8, 3)
    assert [len(open_source(f"records:{shards[0]}", split)) for split in SPLITS[1:]] == [0, 0]


def test_a_damaged_shard_is_named(shards, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(shards[0], copy)
    records = MixedRecords(f"records:{copy}")
    cut, missing = (records.sets[0].index.of_ratio(bucket.ratio)[0].file for bucket in records.buckets[:2])
    cut.write_bytes(cut.read_bytes()[:100])
    with pytest.raises(UserError, match=r"record 0 of .*array_record cannot be read"):
        records.read(records.buckets[0].ratio, 0, 0)
    missing.unlink()
    with pytest.raises(UserError, match="no such file"):
        records.read(records.buckets[1].ratio, 0, 0)
    columns = missing.with_name("columns.npz")
    for damaged in (b"", columns.read_bytes()[:300], columns.read_bytes().replace(b"NUMPY", b"NUMBY")):
        columns.write_bytes(damaged)
        with pytest.raises(UserError, match=r"columns.npz cannot be read: .*; prepare the set again"):
            MixedRecords(f"records:{copy}", parse_limits("height>=1"))
    (copy / "index.json").write_text("{")
    with pytest.raises(UserError, match="prepare the set again"):
        MixedRecords(f"records:{copy}")
    with pytest.raises(UserError, match=r"has no index.json"):
        MixedRecords(f"records:{tmp_path}")


@pytest.mark.parametrize("preset", [*scales.BUDGETS, *scales.SMALL_BUDGETS])
def test_the_size_of_a_batch_says_its_ratio(preset):
    """Each ratio is a program of its own, found by the features' size."""
    last = [scales.make_schedule(preset, ratio).last for ratio in scales.aspect_ratios()]
    assert len(set(last)) == len(scales.aspect_ratios()) == 15


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32])
def test_arrays_of_both_types_come_back_from_a_record(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    record = shard_files.unpack(
        shard_files.pack({"id": "a", "captions": {"float32": ["x"]}, "features": array})
    )
    assert record["features"].dtype == dtype and record["captions"] == {"float32": ["x"]}
    np.testing.assert_array_equal(record["features"], array)
    with pytest.raises(TypeError, match="a record holds float64"):
        shard_files.pack({"features": array.astype(np.float64)})
