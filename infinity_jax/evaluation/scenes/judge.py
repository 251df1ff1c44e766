"""The judge of scenes: what objects a picture shows, of what colour and material, and where they stand.

It was trained on the tracer's own pictures (experiments/scene_judge.py), so that it needs no outside weights; how often
it is right is in docs/results/scene_judge.md.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from infinity_jax.checkpoints import folder
from infinity_jax.data.scenes.description import MOST_OBJECTS
from infinity_jax.data.scenes.vocabulary import COLOURS, FLOORS, MATERIALS, OBJECTS
from infinity_jax.evaluation.scenes.network import JudgeNetwork, Maps, seen
from infinity_jax.metrics.network_weights import filled_batches

WEIGHTS = Path(__file__).parent / "judge.safetensors"
# A cell with an object is a peak of at least this probability.
_CERTAIN = 0.4
_BATCH = 64
# More than a picture of the data set has, so that one too many is seen.
_MOST = MOST_OBJECTS + 2


class Found(NamedTuple):
    """An object that is seen in a picture.

    Attributes:
      kind, colour, material: words of `data.scenes.vocabulary`.
      x, z: where it stands, to the right and towards the camera, see `description.Thing`.
      certainty: that there is an object, in 0..1.
    """

    kind: str
    colour: str
    material: str
    x: float
    z: float
    certainty: float


class Sight(NamedTuple):
    """What is seen in a picture: objects, the most certain first, and the floor's word."""

    objects: tuple[Found, ...]
    floor: str


class Peaks(NamedTuple):
    """The most certain cells of each picture, as numbers of the vocabulary's words; certainty 0 where there is none."""

    certainty: Float[Array, "B m"]
    kind: Array
    colour: Array
    material: Array
    place: Float[Array, "B m 2"]
    floor: Array


def peaks(maps: Maps) -> Peaks:
    """Picks the cells that are above their eight neighbours, and reads the other maps there."""
    present = jax.nn.sigmoid(maps.presence)
    around = jax.lax.reduce_window(present, -jnp.inf, jax.lax.max, (1, 3, 3), (1, 1, 1), "SAME")
    present = jnp.where((present >= around) & (present >= _CERTAIN), present, 0.0)
    certainty, cells = jax.lax.top_k(present.reshape(len(present), -1), _MOST)

    def there(x: Array) -> Array:
        return jnp.take_along_axis(x.reshape(len(x), -1, x.shape[-1]), cells[..., None], 1)

    kind, colour, material = (there(x).argmax(-1) for x in (maps.kind, maps.colour, maps.material))
    return Peaks(certainty, kind, colour, material, there(maps.place), maps.floor.argmax(-1))


@functools.cache
def _judging() -> Any:
    """Reads the weights, and jits their use: pictures uint8 [B,H,H,3] -> `Peaks`."""
    params = folder.read_arrays(WEIGHTS)

    def judge(params: Any, image_BHW3: Array) -> Peaks:
        maps = JudgeNetwork().apply({"params": params}, seen(image_BHW3.astype(jnp.float32) / 127.5 - 1))
        return peaks(maps)  # pyright: ignore[reportArgumentType]

    return functools.partial(jax.jit(judge), params)


def look(image_NHW3: UInt8[np.ndarray, "N H H 3"]) -> list[Sight]:
    """Says what is seen in square pictures.

    Raises:
      UserError: the weights in the package are damaged.
    """
    sights: list[Sight] = []
    for batch, count in filled_batches(image_NHW3, _BATCH):
        found = jax.device_get(_judging()(batch))
        sights += [_sight(jax.tree.map(lambda x, i=i: x[i], found)) for i in range(count)]
    return sights


def _sight(one: Peaks) -> Sight:
    """Puts the peaks of one picture in words."""
    colours = tuple(COLOURS)
    objects = tuple(
        Found(
            OBJECTS[one.kind[i]],
            colours[one.colour[i]],
            MATERIALS[one.material[i]],
            float(one.place[i, 0]),
            float(one.place[i, 1]),
            float(certainty),
        )
        for i, certainty in enumerate(one.certainty)
        if certainty > 0
    )
    return Sight(objects, FLOORS[int(one.floor)])
