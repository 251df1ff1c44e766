"""Scenes become pictures on the devices that train on them, as one more step before the encoders."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from infinity_jax.data.scenes.tracer import render
from infinity_jax.runtime.compiled_step import BatchShapes, CompiledStep, Compiler
from infinity_jax.runtime.devices import on_each_device
from infinity_jax.runtime.sharding import Layout

_KEY = "scene:"


def key_of(height: int, width: int) -> str:
    """Names the array of a batch that holds scenes to be drawn at a size: float32 [B,NUMBERS]."""
    return f"{_KEY}{height}x{width}"


def size_in(batch: Mapping[str, Any]) -> tuple[int, int] | None:
    """Reads at which height and width a batch's scenes are to be drawn; None where it has none."""
    key = _key_in(batch)
    return None if key is None else _size(key)


def _key_in(batch: Mapping[str, Any]) -> str | None:
    return next((name for name in batch if name.startswith(_KEY)), None)


def _size(key: str) -> tuple[int, int]:
    height, width = map(int, key.removeprefix(_KEY).split("x"))
    return height, width


class ScenesOnDevice:
    """Replaces a batch's scenes by `image` uint8 [B,height,width,3]; a batch without scenes stays as it is.

    Each size is one program.
    """

    def __init__(self, layout: Layout, compiler: Compiler | None = None):
        """Takes the mesh, and what compiles the programs; see `CompiledStep`."""
        self._layout = layout

        def drawing(key: str, size: int) -> CompiledStep:
            height, width = _size(key)

            # Each device draws its own pictures, one after the other.
            own = functools.partial(render, height=height, width=width)

            def pictures(_: None, batch: Mapping[str, Array], __: None) -> Array:
                return on_each_device(own, [("batch", None)], ("batch", None, None, None))(batch[key])

            jitted = jax.jit(layout.traced(pictures), out_shardings=layout.batch(size))
            return CompiledStep(jitted, compiler, "the drawing of scenes")

        self._drawing = functools.cache(drawing)

    def __call__(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Draws the pictures of a batch that lies on the devices."""
        key = _key_in(batch)
        if key is None:
            return batch
        rest = {name: array for name, array in batch.items() if name != key}
        return {**rest, "image": self._drawing(key, len(batch[key]))(None, {key: batch[key]}, None)}

    def prepare(self, batches: Sequence[BatchShapes]) -> list[BatchShapes]:
        """Compiles the programs for batches of these shapes; returns the shapes that they become."""
        return [self._prepared(batch) for batch in batches]

    def _prepared(self, batch: BatchShapes) -> BatchShapes:
        key = _key_in(batch)
        if key is None:
            return batch
        size = batch[key].shape[0]
        self._drawing(key, size).prepare(None, [{key: batch[key]}], None)
        height, width = _size(key)
        image = jax.ShapeDtypeStruct((size, height, width, 3), jnp.uint8, sharding=self._layout.batch(size))
        return {**{name: x for name, x in batch.items() if name != key}, "image": image}
