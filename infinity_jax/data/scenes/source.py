"""The data set `scenes`: a source of records like any other, and one of descriptions that devices draw."""

import functools
import io
from collections.abc import Callable
from typing import TypedDict

import jax
import numpy as np
from jaxtyping import Float
from PIL import Image

from infinity_jax.data.records import Record
from infinity_jax.data.scenes.captions import caption
from infinity_jax.data.scenes.description import Scene, describe
from infinity_jax.data.scenes.tracer import render

NAME = "scenes"
# An epoch of what has no end, and what is measured on.
LENGTHS = {"train": 1_000_000, "validation": 256, "compositions": 256}
# So many of a split are looked at where a data set is measured whole.
MEASURED = 2048
# Pixels along a side of the records' pictures; who reads them brings them to another size.
SIDE = 128


class DescribedScene(TypedDict):
    """A scene as a device draws it: `Scene.numbers`, and its caption."""

    scene: Float[np.ndarray, " P"]
    caption: str


@functools.cache
def _drawing(height: int, width: int) -> Callable:
    return jax.jit(functools.partial(render, height=height, width=width))


def png_of(scene: Scene, height: int, width: int) -> bytes:
    """Draws one scene as the bytes of a PNG."""
    out = io.BytesIO()
    image = np.asarray(_drawing(height, width)(scene.numbers()[None]))[0]
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


class SceneSource:
    """One split as a sequence of {image (PNG, 128x128), caption, id}; each picture is drawn when it is asked for."""

    def __init__(self, split: str, seed: int = 0):
        self._split, self._seed = split, seed

    def __len__(self) -> int:
        return LENGTHS[self._split]

    def scene(self, index: int) -> Scene:
        """Describes a scene. Raises IndexError past the end."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return describe(self._seed, self._split, index)

    def __getitem__(self, index: int, /) -> Record:
        scene = self.scene(index)
        return {"image": png_of(scene, SIDE, SIDE), "caption": caption(scene), "id": f"{self._split}/{index}"}

    @property
    def described(self) -> "DescribedScenes":
        """Gives the same scenes without drawing them."""
        return DescribedScenes(self)


class DescribedScenes:
    """A split's scenes as numbers for `tracer.render`, with their captions."""

    def __init__(self, source: SceneSource):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int, /) -> DescribedScene:
        scene = self._source.scene(index)
        return {"scene": scene.numbers(), "caption": caption(scene)}
