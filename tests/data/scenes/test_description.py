"""Scenes as words: what is drawn of them, what never is, and what captions say."""

import hashlib
import itertools
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from infinity_jax.data.records import SPLITS
from infinity_jax.data.scenes import vocabulary
from infinity_jax.data.scenes.captions import caption
from infinity_jax.data.scenes.description import NUMBERS, describe
from infinity_jax.data.scenes.vocabulary import COLOURS, COUNTS, FLOORS, OBJECTS, PAIRS, RELATIONS, TASKS

SCENES = {split: [describe(0, split, number) for number in range(600)] for split in SPLITS}
DIGEST = """
import hashlib, sys
from infinity_jax.data.scenes.captions import caption
from infinity_jax.data.scenes.description import describe
digest = hashlib.sha256()
for number in reversed(range(50)):
    scene = describe(3, "train", number)
    digest.update(caption(scene).encode() + scene.numbers().tobytes())
print(digest.hexdigest())
"""


def test_a_tenth_of_the_pairs_of_each_kind_is_held_out():
    for kind, pairs in PAIRS.items():
        held_out = vocabulary.held_out(kind)
        assert held_out <= set(pairs) and abs(len(held_out) - len(pairs) / 10) <= 0.5


def test_every_colour_object_and_floor_is_seen_in_training():
    pairs = set().union(*(scene.pairs() for scene in SCENES["train"]))
    assert {(OBJECTS.index(a) >= 0, b) for kind, a, b in pairs if kind == "object, colour"} == {
        (True, colour) for colour in COLOURS
    }
    wanted = {(kind, *pair) for kind, all_of in PAIRS.items() for pair in all_of}
    held_out = {pair for pair in wanted if vocabulary.is_held_out(*pair)}
    assert pairs == wanted - held_out


def never_held_out(numbers: range) -> bool:
    return not any(describe(0, "train", number).is_unseen() for number in numbers)


@pytest.mark.long
def test_held_out_pairs_never_occur_in_training_or_validation():
    assert never_held_out(range(3_000))
    assert not any(scene.is_unseen() for scene in SCENES["validation"])


@pytest.mark.slow
def test_held_out_pairs_never_occur_in_a_million_scenes():
    assert never_held_out(range(1_000_000))


def test_every_composition_shows_the_held_out_pair_of_its_task():
    tasks = Counter(scene.task for scene in SCENES["compositions"])
    assert tasks == dict.fromkeys(TASKS, 100)
    kinds = {"two_object": "object, object", "counting": "count, object", "color_attr": "object, colour"}
    kinds |= {"single_object": "object, floor", "colors": "object, colour", "position": "object, object"}
    for scene in SCENES["compositions"]:
        assert any(
            kind == kinds[scene.task] and vocabulary.is_held_out(kind, a, b) for kind, a, b in scene.pairs()
        )


def test_a_scene_depends_on_seed_split_and_number_alone():
    digest = hashlib.sha256()
    for number in reversed(range(50)):
        scene = describe(3, "train", number)
        digest.update(caption(scene).encode() + scene.numbers().tobytes())
    other = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest.hexdigest()
    different = [
        describe(0, "train", 1),
        describe(1, "train", 1),
        describe(0, "validation", 1),
        describe(0, "train", 2),
    ]
    assert len({caption(scene) + str(scene.numbers()) for scene in different}) == 4


def test_training_has_all_tasks_alike():
    tasks = Counter(scene.task for scene in SCENES["train"])
    assert set(tasks) == set(TASKS) and min(tasks.values()) > 70


@pytest.mark.parametrize("split", SPLITS)
def test_objects_stand_apart_and_as_the_relation_says(split):
    for scene in SCENES[split]:
        for a, b in itertools.combinations(scene.things, 2):
            assert np.hypot(a.x - b.x, a.z - b.z) > a.size + b.size
        if scene.task == "position":
            a, b = scene.things
            holds = {
                "left of": a.x < b.x,
                "right of": a.x > b.x,
                "in front of": a.z > b.z,
                "behind": a.z < b.z,
            }
            assert holds[scene.relation]
            across = abs(a.x - b.x) > abs(a.z - b.z)
            assert across == (scene.relation in ("left of", "right of"))


@pytest.mark.parametrize("split", SPLITS)
def test_captions_say_what_is_there(split):
    for scene in SCENES[split]:
        words = caption(scene)
        assert all(thing.kind in words for thing in scene.things)
        told = [floor for floor in FLOORS if f"on a {floor} floor" in words]
        assert told in ([], [scene.floor])
        if scene.task == "counting":
            assert f"{COUNTS[len(scene.things)]} {scene.things[0].kind}s" in words
        if scene.task in ("colors", "color_attr"):
            assert all(f"{thing.colour} {thing.kind}" in words for thing in scene.things)
        else:
            assert not any(f" {colour} " in words for colour in COLOURS)
        if scene.task == "single_object" and split == "compositions":
            assert told
        if scene.task == "position":
            first = words.index(scene.things[0].kind) < words.index(scene.things[1].kind)
            (relation,) = [relation for relation in RELATIONS if f" {relation} " in words]
            opposite = {"left of": "right of", "in front of": "behind"}
            opposite |= {b: a for a, b in opposite.items()}
            assert relation == (scene.relation if first else opposite[scene.relation])


def test_captions_have_several_wordings_and_good_english():
    captions = {caption(scene) for scene in SCENES["train"]}
    assert {text.split(" a ")[0] for text in captions} >= {"a photo of", "a picture of"}
    assert any("an orange" in text for text in captions) and not any("a orange" in text for text in captions)
    assert len(captions) > 300


def test_numbers_have_one_length_and_mark_what_is_missing():
    for scene in SCENES["train"][:50]:
        numbers = scene.numbers()
        assert numbers.shape == (NUMBERS,) and numbers.dtype == np.float32
        assert (numbers[:36:9] >= 0).sum() == len(scene.things)
