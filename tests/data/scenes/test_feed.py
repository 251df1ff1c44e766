"""Scenes as a run reads them: as records, and as batches that devices draw."""

import itertools

import numpy as np
import pytest
from helpers.systems import TOKENIZER, initial_params

from infinity_jax.checkpoints.trained import TrainedTokenizer
from infinity_jax.data import pictures, sources
from infinity_jax.data.originals import by_name
from infinity_jax.data.prepared import writer
from infinity_jax.data.prepared.config import DataConfig
from infinity_jax.data.prepared.record_set import MixedRecords, RecordSource
from infinity_jax.data.resolutions import PictureConfig
from infinity_jax.data.scenes.captions import caption
from infinity_jax.data.scenes.description import describe
from infinity_jax.data.scenes.feed import SceneFeed
from infinity_jax.data.scenes.source import SceneSource
from infinity_jax.errors import UserError
from infinity_jax.files.pictures import opened
from infinity_jax.text.encoder import load_text_encoder
from infinity_jax.tokenizer.model import Tokenizer

KEY = "scene:16x16"


@pytest.fixture(scope="module")
def feed():
    tokenizer = TrainedTokenizer(TOKENIZER, initial_params(Tokenizer(TOKENIZER), 16, 0), "32px", {})
    return SceneFeed(DataConfig("scenes", "32px"), tokenizer, load_text_encoder("minilm", 16, ""))


def first(feed, rows, step=0, count=1, seed=0):
    return list(itertools.islice(feed.batches(rows, 4, seed, step), count))


def test_a_batch_is_scenes_and_the_ids_of_their_captions(feed):
    (batch,) = first(feed, range(4))
    wanted = [describe(0, "train", number) for number in range(4)]
    np.testing.assert_array_equal(batch[KEY], [scene.numbers() for scene in wanted])
    ids = feed.text_encoder.tokens([caption(scene) for scene in wanted])
    assert [list(row[: len(i)]) for row, i in zip(batch["text_ids"], ids, strict=True)] == ids
    (shapes,) = feed.shapes()
    assert shapes[KEY] == (batch[KEY].shape[1:], np.float32) and shapes["text_mask"][0] == (16,)


def test_a_run_goes_on_where_it_stopped_and_any_number_of_processes_reads_the_same(feed):
    whole = first(feed, range(4), count=3)
    (later,) = first(feed, range(4), step=2)
    shares = [first(feed, rows, step=2)[0] for rows in ([0, 1], [2, 3])]
    np.testing.assert_array_equal(later[KEY], whole[2][KEY])
    np.testing.assert_array_equal(np.concatenate([share[KEY] for share in shares]), whole[2][KEY])
    assert len(np.unique(np.concatenate([batch[KEY] for batch in whole]), axis=0)) == 12
    (other,) = first(feed, range(4), seed=1)
    assert np.abs(other[KEY] - whole[0][KEY]).max() > 0


def test_validation_is_read_once_in_full_batches(feed):
    found = list(feed.eval_batches(100))
    assert [batch["valid"].sum() for batch in found] == [100, 100, 56]
    np.testing.assert_array_equal(found[0][KEY][5], describe(0, "validation", 5).numbers())
    assert feed.caption(5, held_back=True) == caption(describe(0, "validation", 5))


@pytest.mark.long
def test_records_are_pictures_with_captions():
    source = sources.open_source("scenes", "compositions")
    assert isinstance(source, SceneSource) and len(source) == 256
    record = source[3]
    assert record["caption"] == caption(describe(0, "compositions", 3)) and record["id"] == "compositions/3"
    with opened(record["image"]) as picture:
        assert picture.size == (128, 128)
    assert pictures.decode(record["image"], 32, 32).std() > 5
    with pytest.raises(IndexError):
        source[256]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: DataConfig("scenes", "32px", fit="pad"),
            "data.fit is 'pad', and scenes are drawn at their size",
        ),
        (lambda: PictureConfig("scenes", "32px", flip=0.5), "data.flip 0.5: scenes are drawn at their size"),
        (lambda: sources.open_source("scene", "train"), "did you mean 'scenes'"),
    ],
)
def test_what_scenes_have_no_use_for_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.long
def test_scenes_are_drawn_once_into_shards_of_their_ratio(tmp_path):
    report = writer.prepare("scenes:compositions/3@16x24", tmp_path, workers=1)
    assert report["pictures"] == 3 and report["by_ratio"] == {"2:3": 3}
    records = RecordSource(MixedRecords(f"records:{tmp_path}"))
    assert {record["caption"] for record in (records[i] for i in range(3))} == {
        caption(describe(0, "compositions", number)) for number in range(3)
    }


@pytest.mark.parametrize("place", ["", "0", "many", "5@5", "5@4x4", "5@64x2000", "tests/5"])
def test_a_wrong_set_of_scenes_is_refused(place):
    with pytest.raises(UserError, match=r"scenes:.*(not of the form|a side is from 8 to 1024)"):
        by_name.find_parts(f"scenes:{place}")
