"""Drawing bits from their logits: the plain reference (spec section 7)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32


def draw_bits(
    logits_BNd2: Float[Array, "B N d 2"],
    seeds_B: UInt32[Array, " B"],
    scale: int,
    tau: Float[Array, ""],
    top_p: Float[Array, ""],
) -> Bool[Array, "B N d"]:
    """Bits of one scale. A picture's draw depends on its own seed alone, not on what is beside it.

    Args:
      logits_BNd2: float32, after guidance.
      seeds_B: uint32, one per picture.
      scale: number of the scale; each has random numbers of its own.
      tau: temperature; 0 takes the likelier value.
      top_p: a value with probability <= 1 - top_p is never drawn.
    """
    difference_BNd = logits_BNd2[..., 1] - logits_BNd2[..., 0]
    likelier = difference_BNd > 0
    probability = jax.nn.sigmoid(difference_BNd / jnp.maximum(tau, 1e-6))

    def uniform(seed):
        return jax.random.uniform(jax.random.fold_in(jax.random.key(seed), scale), difference_BNd.shape[1:])

    drawn = jax.vmap(uniform)(seeds_B) < probability
    dead = jnp.minimum(probability, 1 - probability) <= 1 - top_p
    return jnp.where(dead | (tau == 0), likelier, drawn)
