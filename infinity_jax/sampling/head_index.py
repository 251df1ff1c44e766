"""From the last block's output to the bits of a drawn index: the baseline of `head_bits` (paper Table 5).

Index i of a token is drawn with its probability by the Gumbel-max rule: where logit_i / tau + g_i is largest, with
g_i = -log(-log(u_i)) and u_i uniform. As in `bits` the random numbers are numbered: each comes from (seed of the
picture, scale, token, index), so that a draw depends on nothing beside it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32, UInt32

from infinity_jax.config import TransformerConfig
from infinity_jax.runtime.sharding import constrain
from infinity_jax.sampling.bits import DrawSettings, LinearHead, threefry2x32
from infinity_jax.sampling.head_bits import guided_logits, modulations
from infinity_jax.tokenizer import indices


def index_head(
    config: TransformerConfig, params: Any, vector_NC: Float[Array, "N C"], rows: int
) -> LinearHead:
    """Prepares the head of a batch, once for all scales; arguments as in `head_bits.difference_head`."""
    head = params["index_head"]
    weight_CV = head["logits"]["kernel"].astype(config.compute_dtype)
    bias_V = head["logits"]["bias"].astype(jnp.float32)
    return LinearHead(modulations(config, head, vector_NC, rows), weight_CV, bias_V)


def draw_indices(
    hidden_GBNC: Float[Array, "G B N C"], head: LinearHead, cfg_B: Float[Array, " B"], settings: DrawSettings
) -> Bool[Array, "B N d"]:
    """Draws an index for each token of one scale and returns its bits; arguments as in `head_bits.draw_head_bits`."""
    logits_BNV = constrain(guided_logits(hidden_GBNC, head, cfg_B), "batch", "tokens", "indices")
    index_BN = draw_index(logits_BNV, settings)
    return indices.to_bits(index_BN, logits_BNV.shape[-1].bit_length() - 1)


def draw_index(logits_BNV: Float[Array, "B N V"], settings: DrawSettings) -> Int32[Array, "B N"]:
    """Draws an index for each token.

    Args:
      logits_BNV: float32, after guidance.
      settings: tau 0 takes the likeliest index; with top_p only the likeliest indices that together have this
        probability are drawn, and those as likely as the last of them (with one bit a token this is the rule of
        `bits.draw_bits`).
    """
    tau, top_p = settings.tau_B[:, None, None], settings.top_p_B[:, None, None]
    warm, is_cut = jnp.where(tau > 0, tau, 1.0), (top_p < 1) & (tau > 0)
    kept_BNV = jax.lax.cond(
        is_cut.any(),
        lambda logits: in_nucleus(logits / warm, top_p) | ~is_cut,
        lambda logits: jnp.ones(logits.shape, bool),
        logits_BNV,
    )
    noise_BNV = jnp.where(tau > 0, gumbel(logits_BNV.shape, settings.seeds_B, settings.scale), 0.0)
    return jnp.argmax(jnp.where(kept_BNV, logits_BNV / warm + noise_BNV, -jnp.inf), -1).astype(jnp.int32)


def in_nucleus(logits_BNV: Float[Array, "B N V"], top_p: Float[Array, "B 1 1"]) -> Bool[Array, "B N V"]:
    """Tells which indices belong to the likeliest ones that together have probability `top_p`; at least one does.

    Without sorting: the lowest probability that still belongs is found bit by bit. Positive float32 numbers have the
    order of their bits, so 31 comparisons of sums find it exactly.
    """
    p_BNV = jax.nn.softmax(logits_BNV, -1)
    place_BNV = jax.lax.bitcast_convert_type(p_BNV, jnp.int32)

    def with_bit(i, lowest_BN1):
        higher = lowest_BN1 | (jnp.int32(1) << (30 - i))
        mass = jnp.sum(jnp.where(place_BNV >= higher, p_BNV, 0.0), -1, keepdims=True)
        return jnp.where(mass >= top_p, higher, lowest_BN1)

    lowest_BN1 = jax.lax.fori_loop(0, 31, with_bit, jnp.zeros((*p_BNV.shape[:2], 1), jnp.int32))
    # With a top_p of 0 even nothing is enough: then the likeliest stays.
    return place_BNV >= jnp.minimum(lowest_BN1, place_BNV.max(-1, keepdims=True))


def gumbel(shape_BNV: tuple[int, ...], seeds_B: UInt32[Array, " B"], scale: int) -> Float[Array, "B N V"]:
    """Makes numbered Gumbel noise for all indices of one scale, float32 [B,N,V]."""
    token, index = (jax.lax.broadcasted_iota(jnp.uint32, shape_BNV, axis) for axis in (1, 2))
    word, _ = threefry2x32((seeds_B[:, None, None], jnp.uint32(scale)), (token, index))
    # Fine near 0, where the large values come from that let a rare index win: up to 22.9. Never 0 or 1.
    above = (word.astype(jnp.float32) + 0.5) * np.float32(2**-32)
    return -jnp.log(-jnp.log1p(-jnp.minimum(above, np.float32(1 - 2**-24))))
