"""Parameters of a block with the maps of one input joined, as the sampler reads them."""

from typing import Any

import jax.numpy as jnp

# What `joined` joins: the layer of a block, its maps, their common name.
JOINED = (
    ("self_attention", ("query", "key", "value"), "query_key_value"),
    ("cross_attention", ("key", "value"), "key_value"),
)


def is_joined(blocks: Any) -> bool:
    """Tells whether parameters of blocks are as `joined` returns them."""
    layer, _, name = JOINED[0]
    return name in blocks[layer]


def joined(blocks: Any) -> Any:
    """Joins the maps of one input to queries, keys and values, for the sampler: one product instead of three.

    Few rows hardly use a processor's cores, and a GPU's compiler would join the weights at each call.

    Args:
      blocks: parameters of one block, or of all with a first axis of layers.
    """
    for layer, maps, name in JOINED:
        if layer not in blocks:  # without a text there is no cross-attention
            continue
        parts = [blocks[layer][of_map] for of_map in maps]
        nothing = jnp.zeros_like(parts[-1]["bias"])  # keys have no bias
        one = {
            "kernel": jnp.stack([part["kernel"] for part in parts], -3),
            "bias": jnp.stack([part.get("bias", nothing) for part in parts], -3),
        }
        others = {key: value for key, value in blocks[layer].items() if key not in maps}
        blocks = {**blocks, layer: {**others, name: one}}
    return blocks
