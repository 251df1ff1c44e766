"""Drawing bits: a bit is 1 where the difference of its two logits exceeds a random threshold (docs/spec.md section 7).

A bit with logit difference l is 1 with probability sigmoid(l / tau), which is the probability of
l > tau * log(u / (1 - u)) for u uniform in (0, 1). The thresholds depend on random numbers alone. They are numbered:
each comes from (seed of the picture, scale, token, bit), so that a draw is the same on every backend and does not
depend on block sizes, on sharding, or on the pictures beside it.
"""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt32

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
KEY_PARITY = np.uint32(0x1BD11BDA)
Pair = tuple[jax.Array, jax.Array]


@flax.struct.dataclass
class DrawSettings:
    """How the bits of one scale are drawn.

    Attributes:
      seeds_B: uint32, one per picture; a picture's draw depends on its own seed alone, not on what is beside it.
      scale: number of the scale, static; each has random numbers of its own.
      tau_B: float32, temperature of each picture; 0 takes the likelier value.
      top_p_B: float32; a value with probability <= 1 - top_p is never drawn.
    """

    seeds_B: UInt32[Array, " B"]
    tau_B: Float[Array, " B"]
    top_p_B: Float[Array, " B"]
    scale: int = flax.struct.field(pytree_node=False)


class LinearHead(NamedTuple):
    """The head as the last step of every scale reads it: one column a bit (`head_bits`) or an index (`head_index`).

    Attributes:
      modulation_BG2C: float32, scale and shift of the head's norm for each row of a picture.
      weight_Cn: the linear map's weights, in the type of the product's operands.
      bias_n: float32.
    """

    modulation_BG2C: Float[Array, "B G 2 C"]
    weight_Cn: Float[Array, "C n"]
    bias_n: Float[Array, " n"]


def threefry2x32(key: Pair, counter: Pair) -> Pair:
    """Makes two random words of each pair of counter words (Salmon et al. 2011, Threefry-2x32 with 20 rounds).

    Only adds, shifts and xors of uint32, so it runs inside a kernel as well.

    Args:
      key: two uint32 arrays that broadcast with the counter's.
      counter: two uint32 arrays of one shape.
    """
    keys = (*key, key[0] ^ key[1] ^ KEY_PARITY)
    a, b = counter[0] + keys[0], counter[1] + keys[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            a = a + b
            b = (b << np.uint32(rotation)) | (b >> np.uint32(32 - rotation))
            b = b ^ a
        a = a + keys[(group + 1) % 3]
        b = b + keys[(group + 2) % 3] + np.uint32(group + 1)
    return a, b


def random_thresholds(
    seed: jax.Array, scale: jax.Array, token: jax.Array, bit: jax.Array, tau: jax.Array, limit: jax.Array
) -> jax.Array:
    """Returns what the logit difference of each bit must exceed for the bit to be 1, float32.

    Args:
      seed, scale: uint32, broadcast with the rest.
      token, bit: uint32 of one shape, the result's.
      tau: temperature, float32.
      limit: from `dead_zone`.
    """
    word, _ = threefry2x32((seed, scale), (token, bit))
    # u = m / 2**24 with m odd: exact in float32, as is 1 - u; never 0 or 1, and as often below 1/2 as above.
    m = ((word >> np.uint32(8)) | np.uint32(1)).astype(jnp.int32).astype(jnp.float32)
    logistic = jnp.log(m / (np.float32(2**24) - m))
    return jnp.clip(tau * logistic, -limit, limit)


def dead_zone(tau: jax.Array, top_p: jax.Array) -> jax.Array:
    """Returns the logit difference from which on the less likely value is never drawn, float32; infinite at top_p 1.

    At top_p <= 1/2 it is 0: always the likelier value.
    """
    at_least_half = jnp.maximum(top_p, 0.5)
    return jnp.where(top_p < 1, tau * jnp.log(at_least_half / (1 - at_least_half)), jnp.inf)


def draw_bits(difference_BNd: Float[Array, "B N d"], settings: DrawSettings) -> Bool[Array, "B N d"]:
    """Draws the bits of one scale from float32 logits of 1 minus logits of 0, after guidance."""
    return difference_BNd > thresholds(difference_BNd.shape, settings)


def thresholds(shape_BNd: tuple[int, ...], settings: DrawSettings) -> Float[Array, "B N d"]:
    """Returns the `random_thresholds` of all bits of one scale, float32 [B,N,d]."""
    token, bit = (jax.lax.broadcasted_iota(jnp.uint32, shape_BNd, axis) for axis in (1, 2))
    limit_B = dead_zone(settings.tau_B, settings.top_p_B)
    seed, tau, limit = (x_B[:, None, None] for x_B in (settings.seeds_B, settings.tau_B, limit_B))
    return random_thresholds(seed, jnp.uint32(settings.scale), token, bit, tau, limit)
