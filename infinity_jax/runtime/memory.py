"""How much memory there is, and whether a model can fit at all: asked before anything is allocated."""

import math
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import PyTree

from infinity_jax.errors import UserError
from infinity_jax.runtime.devices import GIB, main_memory, memory_bytes
from infinity_jax.runtime.sharding import Layout

FLOAT32 = 4


def device_memory(layout: Layout) -> int:
    """Counts the bytes that one device of a mesh has; devices of a CPU share the machine's."""
    devices: Any = layout.mesh.devices  # not of the mesh of a compilation ahead
    here = [device for device in devices.flat if device.process_index == jax.process_index()]
    return main_memory() // len(here) if here[0].platform == "cpu" else memory_bytes()


def check_training_fits(variables: PyTree, layout: Layout, state_bytes: int, activations: int) -> int:
    """Counts a model's parameters, and refuses one for which a device has not even a part of the memory it needs.

    Args:
      variables: float32 parameters as ShapeDtypeStructs, boxed with their logical axis names.
      state_bytes: what a run keeps of each of them; its gradient comes on top.
      activations: bytes of the largest array of activations that is surely held, of all devices together.
    Returns:
      the number of parameters.
    Raises:
      UserError: it does not fit.
    """
    shapes, shardings = jax.tree.leaves(nn.meta.unbox(variables)), jax.tree.leaves(layout.of(variables))
    parameters = sum(math.prod(leaf.shape) for leaf in shapes)
    on_device = sum(
        math.prod(sharding.shard_shape(leaf.shape)) for leaf, sharding in zip(shapes, shardings, strict=True)
    )
    needed = on_device * (state_bytes + FLOAT32) + activations // layout.batch_parts
    there = device_memory(layout)
    if needed > there:
        raise UserError(
            f"training a model of {parameters:,} parameters takes at least {needed / GIB:,.4g} GiB on each device, and "
            f"each has {there / GIB:,.4g} GiB; use a smaller config.model or train.batch_size, or more devices "
            "(config.mesh)"
        )
    return parameters
