"""The picture of a scene: solids by their distances, what is seen of them, and the devices that draw."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax.data.scenes import solids
from infinity_jax.data.scenes.description import Scene, Thing, describe
from infinity_jax.data.scenes.on_device import ScenesOnDevice, key_of, size_in
from infinity_jax.data.scenes.tracer import Quality, render
from infinity_jax.data.scenes.vocabulary import COLOURS, OBJECTS
from infinity_jax.runtime import sharding
from infinity_jax.runtime.mesh import MeshConfig

BALL = Thing("ball", "red", "matte", 0.0, 0.0, 0.8, 0.0)
SCENE = Scene("colors", (BALL,), "", "stone", (0.3, 1.0), (0.0, 0.6, 6.5), 0.0, (0.0,) * 4)
ROUGH = Quality(rays=1, steps=16, shadow_steps=4, mirror_steps=4)


@pytest.fixture(scope="module")
def drawn():
    """Draws one scene at 32x32."""
    draw = jax.jit(lambda numbers: render(numbers, 32, 32, ROUGH))
    return lambda scene: np.asarray(draw(scene.numbers()[None]))[0]


def stands(kind: str, size: float = 1.0) -> solids.Solids:
    one = jnp.ones(1)
    return solids.solids(OBJECTS.index(kind) * one, 0 * one, 0 * one, size * one, 0.4 * one)


def points(count: int = 500) -> jax.Array:
    return jax.random.uniform(jax.random.key(0), (count, 3), minval=jnp.array([-2.5, 0.0, -2.5]), maxval=2.5)


def test_the_distance_to_a_ball_is_exact():
    found = solids.nearest(stands("ball", 0.7), points())
    wanted = jnp.linalg.norm(points() - jnp.array([0.0, 0.7, 0.0]), axis=-1) - 0.7
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", OBJECTS)
def test_no_distance_is_too_long(kind):
    """Where it is not, a ray never jumps over a surface: the distance changes by no more than the way."""
    one = stands(kind)
    a = points()
    b = a + 0.1 * jax.random.normal(jax.random.key(1), a.shape)
    change = jnp.abs(solids.nearest(one, a) - solids.nearest(one, b))
    assert jnp.all(change <= jnp.linalg.norm(a - b, axis=-1) + 1e-5)


@pytest.mark.parametrize("kind", OBJECTS)
def test_every_solid_stands_on_the_floor(kind):
    grid = jnp.linspace(-1.6, 1.6, 161)
    x, z = jnp.meshgrid(grid, grid)
    ground = jnp.stack([x.ravel(), jnp.full(x.size, 0.0), z.ravel()], -1)
    assert -0.02 < solids.nearest(stands(kind), ground).min() < 0.02


@pytest.mark.parametrize("colour", COLOURS)
def test_a_ball_has_its_colour(drawn, colour):
    picture = drawn(dataclasses.replace(SCENE, things=(dataclasses.replace(BALL, colour=colour),)))
    seen = picture[14:18, 14:18].mean((0, 1)) / 255
    distance = {name: np.abs(np.array(rgb) - seen).max() for name, rgb in COLOURS.items()}
    assert min(distance, key=distance.__getitem__) == colour


def test_what_is_left_in_the_scene_is_left_in_the_picture(drawn):
    left = dataclasses.replace(BALL, x=-1.2)
    right = dataclasses.replace(BALL, x=1.2, colour="blue")
    picture = drawn(dataclasses.replace(SCENE, things=(left, right))).astype(int)
    redness = picture[..., 0] - picture[..., 2]
    assert redness[:, :16].max() > 100 and redness[:, 16:].min() < -60
    assert redness[:, 16:].max() < 40


def test_what_is_nearer_hides_what_is_behind(drawn):
    behind = dataclasses.replace(BALL, colour="blue", z=-1.8, size=0.3)
    picture = drawn(dataclasses.replace(SCENE, things=(BALL, behind))).astype(int)
    assert (picture[..., 2] - picture[..., 0]).max() < 60


def test_materials_and_floors_look_different(drawn):
    def of(material: str, floor: str) -> np.ndarray:
        thing = dataclasses.replace(BALL, material=material)
        return drawn(dataclasses.replace(SCENE, things=(thing,), floor=floor)).astype(int)

    matte, shiny, metal = (of(material, "stone") for material in ("matte", "shiny", "metal"))
    assert min(np.abs(shiny - matte).max(), np.abs(metal - matte).max(), np.abs(metal - shiny).max()) > 40
    assert np.abs(of("matte", "checkered") - matte)[:, :5].max() > 40


@pytest.mark.long
def test_a_picture_is_the_same_in_every_batch_and_has_any_size():
    numbers = jnp.stack([describe(0, "train", i).numbers() for i in range(3)])
    together = render(numbers, 24, 40, ROUGH)
    assert together.shape == (3, 24, 40, 3) and together.dtype == jnp.uint8
    alone = jax.jit(lambda n: render(n, 24, 40, ROUGH))(numbers[1:2])
    assert np.abs(np.asarray(alone[0], int) - np.asarray(together[1], int)).max() <= 1


@pytest.mark.long
def test_on_a_device_scenes_become_pictures_and_other_batches_stay():
    layout = sharding.layout_of(MeshConfig(), devices=jax.devices()[:1])
    stage, numbers = ScenesOnDevice(layout), describe(0, "train", 0).numbers()
    batch = {key_of(16, 24): jnp.asarray(numbers)[None], "text": jnp.ones((1, 2))}
    assert size_in(batch) == (16, 24)
    found = stage(batch)
    assert found.keys() == {"image", "text"} and found["image"].shape == (1, 16, 24, 3)
    assert size_in(found) is None and stage(found) is found
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}
    (prepared,) = stage.prepare([shapes])
    assert prepared["image"].shape == (1, 16, 24, 3)


ON_A_MESH = """
import os
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
import jax, numpy as np
from infinity_jax.data.scenes.description import describe
from infinity_jax.data.scenes.on_device import ScenesOnDevice, key_of
from infinity_jax.runtime import sharding
from infinity_jax.runtime.mesh import parse_mesh
numbers = np.stack([describe(0, "train", number).numbers() for number in range(16)])
drawn = []
for devices in (1, 8):
    layout = sharding.layout_of(parse_mesh(f"data={devices}"), devices=jax.devices()[:devices])
    batch = {key_of(8, 8): jax.device_put(numbers, layout.batch(16))}
    drawn.append(np.asarray(ScenesOnDevice(layout)(batch)["image"], int))
assert np.abs(drawn[0] - drawn[1]).max() <= 1, np.abs(drawn[0] - drawn[1]).max()
assert drawn[0].std() > 10
"""


@pytest.mark.long
def test_eight_devices_draw_what_one_draws():
    subprocess.run([sys.executable, "-c", ON_A_MESH], check=True, timeout=300)
