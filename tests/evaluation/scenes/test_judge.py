"""The judge of scenes on pictures whose truth is known: what the tracer draws, and what it did not draw."""

import jax
import numpy as np
import pytest

from infinity_jax.data.scenes.description import describe
from infinity_jax.data.scenes.tracer import Quality, render
from infinity_jax.evaluation.scenes import accuracy, judge, places
from infinity_jax.evaluation.scenes.network import SIDE

COUNT = 72


def drawn(scenes, side=SIDE, rays=2):
    numbers = np.stack([scene.numbers() for scene in scenes])
    return np.asarray(jax.jit(lambda n: render(n, side, side, Quality(rays=rays)))(numbers))


@pytest.fixture(scope="module")
def scenes():
    """Scenes that no training had, half of them with held-out pairs."""
    return [describe(5, ("validation", "compositions")[i % 2], 1000 + i) for i in range(COUNT)]


@pytest.fixture(scope="module")
def pictures(scenes):
    return drawn(scenes)


@pytest.mark.long
def test_true_pictures_are_right(scenes, pictures):
    report = accuracy.summary(scenes, judge.look(pictures))
    assert report["accuracy"] > 0.9, report


def test_pictures_of_other_scenes_are_wrong(scenes, pictures):
    """Each scene gets the picture of another one of its task, which by chance may show what it asks for."""
    order = sorted(range(COUNT), key=lambda i: scenes[i].task)
    other = dict(zip(order, order[1:] + order[:1], strict=True))
    sights = judge.look(pictures[[other[i] for i in range(COUNT)]])
    report = accuracy.summary(scenes, sights)
    assert report["accuracy"] < 0.2, report


@pytest.mark.parametrize("make", ["grey", "noise", "upside down", "cut"])
def test_what_is_no_such_picture_is_wrong(scenes, pictures, make):
    draws = np.random.default_rng(0)
    wrong = {
        "grey": np.full_like(pictures, 128),
        "noise": draws.integers(0, 256, pictures.shape, np.uint8),
        "upside down": pictures[:, ::-1],
        # The tiles of a picture in another order.
        "cut": pictures.reshape(COUNT, 4, 16, 64, 3)[:, draws.permutation(4)].reshape(pictures.shape),
    }[make]
    # By chance: a network that never saw noise sees something in it.
    shares = {"grey": 0.02, "noise": 0.15, "upside down": 0.35, "cut": 0.35}
    report = accuracy.summary(scenes, judge.look(wrong))
    assert report["accuracy"] <= shares[make], report


@pytest.mark.slow
def test_an_object_too_many_is_seen():
    """A scene of three, judged as one of two of them: only counting minds."""
    three = [s for s in (describe(5, "validation", i) for i in range(900)) if len(s.things) == 3][:16]
    sights = judge.look(drawn(three))
    assert np.mean([len(sight.objects) == 3 for sight in sights]) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("side", [32, 96])
def test_pictures_of_any_size_are_judged(scenes, side):
    few = scenes[:24]
    report = accuracy.summary(few, judge.look(drawn(few, side)))
    assert report["accuracy"] > (0.4 if side == 32 else 0.8), report


@pytest.mark.slow
def test_middles_are_where_objects_are_drawn(scenes):
    """Without an object the picture changes around its middle."""
    single = [scene for scene in scenes if len(scene.things) == 1][:8]
    whole = drawn(single, rays=1).astype(np.int32)
    empty = np.stack([scene.numbers() for scene in single])
    empty[:, 0] = -1
    without = np.asarray(jax.jit(lambda n: render(n, SIDE, SIDE, Quality(rays=1)))(empty)).astype(np.int32)
    for scene, a, b in zip(single, whole, without, strict=True):
        column, row = (places.middles(scene)[0] * SIDE).astype(int)
        changed = np.abs(a - b).sum(-1) > 30
        around = changed[row - 2 : row + 3, column - 2 : column + 3]
        # A ring is open in its middle.
        assert around.mean() > (0.2 if scene.things[0].kind == "ring" else 0.9), scene
        rows, columns = np.nonzero(changed)
        assert abs(np.median(columns) - column) < SIDE / 6 and abs(np.median(rows) - row) < SIDE / 6, scene
