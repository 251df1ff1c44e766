"""The bundled data set, the sources by name, and the pipeline that batches them."""

import pickle
import subprocess
import sys

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinity_jax.data import emoji_captions, pictures
from infinity_jax.data.batches import batches, eval_batches
from infinity_jax.data.records import SPLITS
from infinity_jax.data.sources import open_source
from infinity_jax.errors import UserError

PREPARE_AND_READ = """
import sys
from infinity_jax.data.batches import batches
from infinity_jax.data.sources import open_source
source = open_source("emoji_captions", "train", sys.argv[1])
assert len(next(batches(source, batch_size=8, seed=0))["image"]) == 8
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def emoji_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emoji")
    subprocess.run([sys.executable, "-c", PREPARE_AND_READ, str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def sources(emoji_dir):
    return {split: open_source("emoji_captions", split, emoji_dir) for split in SPLITS}


class Numbers:
    """A source of `count` records that counts what is read."""

    def __init__(self, count):
        self.count, self.read = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read.append(index)
        return {"x": np.array([index, index]), "name": f"n{index}"}


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def indices(batch):
    return batch["x"][:, 0].tolist()


@pytest.mark.long
def test_splits_are_disjoint_and_complete(sources):
    named = emoji_captions.named_pictures()
    read = {split: [source[i] for i in range(len(source))] for split, source in sources.items()}
    captions = {split: {record["caption"] for record in records} for split, records in read.items()}
    assert sum(map(len, read.values())) == len(named)
    assert set().union(*captions.values()) == {caption for _, _, caption in named}
    assert not captions["train"] & (captions["validation"] | captions["compositions"])
    assert not captions["validation"] & captions["compositions"]
    assert len({record["id"] for records in read.values() for record in records}) == len(named)


def test_split_sizes():
    named = emoji_captions.named_pictures()
    composed = {caption for _, characters, caption in named if emoji_captions.is_composition(characters)}
    split = {caption: emoji_captions.split_of(caption, caption in composed) for _, _, caption in named}
    held_out = {caption for caption in split if split[caption] == "compositions"}
    assert held_out <= composed
    assert 0.04 < len(held_out) / len(composed) < 0.06
    assert 0.03 < sum(s == "validation" for s in split.values()) / len(split) < 0.05


@pytest.mark.parametrize(
    "characters, caption",
    [
        ("\u2764\ufe0f", "red heart"),
        ("👩🏽‍🚀", "woman astronaut, medium skin tone"),
        ("👩🏽‍🦰", "woman, medium skin tone, red hair"),
        ("👨‍🦲", "man, bald"),
        ("👨‍👩‍👧", "family, man, woman, girl"),
        ("🧑🏻‍❤️‍🧑🏿", "couple with heart, person, person, light skin tone, dark skin tone"),
        ("👋🏿", "waving hand, dark skin tone"),
        ("🏿", "dark skin tone"),
        ("🇫🇷", "flag of France"),
        ("🏴󠁧󠁢󠁥󠁮󠁧󠁿", "flag of England"),
        ("🏴‍☠️", "pirate flag"),
    ],
)
def test_captions_are_plain_english(characters, caption):
    name = emoji_captions.emoji.EMOJI_DATA[characters]["en"]
    assert emoji_captions.plain_caption(name, characters) == caption


def test_all_captions_are_clean_and_unique():
    captions = [caption for _, _, caption in emoji_captions.named_pictures()]
    assert len(captions) == len(set(captions)) > 3900
    assert not [c for c in captions if "_" in c or ":" in c or "  " in c or c != c.strip(" ,")]


def test_pictures_are_64x64_on_white(sources):
    records = [sources["train"][i] for i in range(0, len(sources["train"]), 100)]
    decoded = [pictures.decode_rgb(record["image"]) for record in records]
    assert {(image.mode, image.size) for image in decoded} == {("RGB", (64, 64))}
    corners = np.array([image.getpixel((0, 0)) for image in decoded])
    assert (corners == 255).all(axis=1).mean() > 0.9
    heart = next(svg for svg, _, caption in emoji_captions.named_pictures() if caption == "red heart")
    red, green, blue = pictures.decode(emoji_captions.rasterise(heart.read_text()), 64, 64)[30, 32]
    assert red > 180 and green < 80 and blue < 80


def test_preparing_is_atomic_and_idempotent(tmp_path, monkeypatch):
    named = emoji_captions.named_pictures()
    split = [
        emoji_captions.split_of(caption, emoji_captions.is_composition(chars)) for _, chars, caption in named
    ]
    few = [named[split.index(name)] for name in SPLITS]
    monkeypatch.setattr(emoji_captions, "named_pictures", lambda: few)
    with monkeypatch.context() as broken:
        broken.setattr(emoji_captions, "rasterise", lambda svg: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            emoji_captions.prepare_emoji(tmp_path)
    assert not emoji_captions.open_builder(tmp_path).is_prepared()
    (tmp_path / "emoji_captions" / "incomplete.killed_1.0.0").mkdir(parents=True)
    folder = emoji_captions.prepare_emoji(tmp_path)
    assert [child.name for child in folder.parent.iterdir()] == [folder.name]
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert emoji_captions.prepare_emoji(tmp_path) == folder
    assert before == {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert "CC BY-SA 4.0" in emoji_captions.open_builder(tmp_path).info.description


def test_sources_can_be_pickled(sources):
    copy = pickle.loads(pickle.dumps(sources["train"]))
    assert copy[17] == sources["train"][17]


def test_wrong_names_are_explained(tmp_path):
    with pytest.raises(UserError, match="did you mean 'emoji_captions'"):
        open_source("emoji_caption", "train", tmp_path)
    with pytest.raises(UserError, match="unknown split 'test'"):
        open_source("emoji_captions", "test", tmp_path)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 16), seed=st.integers(0, 2**40))
def test_each_record_once_an_epoch(count, batch_size, seed):
    iterator = batches(Numbers(count), batch_size=batch_size, seed=seed)
    row = [i for batch in take(iterator, -(-3 * count // batch_size)) for i in indices(batch)]
    for epoch in range(3):
        assert sorted(row[epoch * count : (epoch + 1) * count]) == list(range(count))


@settings(max_examples=15, deadline=None)
@given(count=st.integers(1, 40), first_step=st.integers(0, 12), threads=st.integers(1, 4))
def test_seed_and_step_alone_decide_a_batch(count, first_step, threads):
    whole = take(batches(Numbers(count), batch_size=6, seed=5), first_step + 3)
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    later = take(batches(Numbers(count), batch_size=6, seed=5, first_step=first_step, reading=reading), 3)
    assert [indices(batch) for batch in later] == [indices(batch) for batch in whole[first_step:]]


def test_starting_late_reads_nothing_before():
    source, reading = Numbers(1000), grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    take(batches(source, batch_size=4, seed=0, first_step=10**6, reading=reading), 1)
    assert len(source.read) <= 4 * 8


def test_order_depends_on_seed_and_epoch():
    def epochs(seed):
        batch = next(batches(Numbers(200), batch_size=600, seed=seed))
        return [tuple(indices(batch)[i : i + 200]) for i in (0, 200, 400)]

    assert len({*epochs(0), *epochs(1), *epochs(2)}) == 9
    plain = next(batches(Numbers(5), batch_size=7, seed=0, shuffle=False))
    assert indices(plain) == [0, 1, 2, 3, 4, 0, 1]


@pytest.mark.parametrize("shares", [[range(6), range(6, 12)], [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]])
def test_processes_share_the_global_batch(shares):
    whole = batches(Numbers(50), batch_size=12, seed=3, first_step=2)
    parts = [batches(Numbers(50), batch_size=12, seed=3, first_step=2, rows=rows) for rows in shares]
    for batch in take(whole, 6):
        expected = np.array(indices(batch))
        for rows, part in zip(shares, parts, strict=True):
            assert indices(next(part)) == expected[list(rows)].tolist()


def test_a_process_reads_only_its_rows():
    source, reading = Numbers(1000), grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    share = batches(source, batch_size=100, seed=0, rows=[7, 8], reading=reading)
    next(share)
    assert len(source.read) <= 2 * 3  # one batch, and those that are kept ready


def test_a_set_smaller_than_a_batch_repeats():
    batch = next(batches(Numbers(3), batch_size=8, seed=0))
    assert batch["x"].shape == (8, 2) and set(indices(batch)) == {0, 1, 2}


def test_transform_and_dtypes():
    def double(record):
        return {"y": record["x"].astype(np.float32) * 2, "raw": b"\x01\x00"}

    batch = next(batches(Numbers(10), batch_size=4, seed=0, transform=double))
    assert batch["y"].dtype == np.float32 and batch["y"].shape == (4, 2)
    assert batch["raw"].tolist() == [b"\x01\x00"] * 4


def test_impossible_batches_are_explained():
    with pytest.raises(UserError, match="empty"):
        batches(Numbers(0), batch_size=4, seed=0)
    with pytest.raises(UserError, match="batch size 0"):
        batches(Numbers(9), batch_size=0, seed=0)


@pytest.mark.parametrize("count", [0, 1, 8, 11])
def test_eval_batches_pass_once_in_order(count):
    got = list(eval_batches(Numbers(count), 4))
    assert all(batch["x"].shape == (4, 2) and batch["valid"].dtype == bool for batch in got)
    seen = [i for batch in got for i, valid in zip(indices(batch), batch["valid"], strict=True) if valid]
    assert seen == list(range(count))
