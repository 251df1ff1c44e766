"""From the last block's output to the bits of a drawn index: the baseline of `head_bits` (paper Table 5).

Index i of a token is drawn with its probability by the Gumbel-max rule: where logit_i / tau + g_i is largest, with
g_i = -log(-log(u_i)) and u_i uniform. As in `bits` the random numbers are numbered: each comes from (seed of the
picture, scale, token, index), so that a draw depends on nothing beside it.
"""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class IndexDraw:
    """Draws an index for each token of one scale, a `hooks.DrawBits` without what it hands on.

    Attributes:
      top_k: only so many of the likeliest indices are drawn, and those as likely as the last of them; 0 is all.
      as_bits: whether an index becomes its bits, see `tokenizer.indices`.
    """

    top_k: int = 0
    as_bits: bool = False

    def __call__(
        self,
        hidden_GBNC: Float[Array, "G B N C"],
        head: LinearHead,
        cfg_B: Float[Array, " B"],
        settings: DrawSettings,
    ) -> Int32[Array, "B N"] | Bool[Array, "B N d"]:
        """Draws; arguments as in `head_bits.draw_head_bits`."""
        index_BN = draw_index(_logits(hidden_GBNC, head, cfg_B), settings, self.top_k)
        return indices.to_bits(index_BN, len(head.bias_n).bit_length() - 1) if self.as_bits else index_BN


@dataclasses.dataclass(frozen=True)
class SmoothDraw:
    """Mixes the likeliest codes instead of drawing one (VAR's more_smooth; docs/spec_var.md section 5), for the eye.

    Attributes:
      top_k: as of `IndexDraw`.
      n_scales: K, of the schedule: later scales mix fewer codes.
    """

    top_k: int
    n_scales: int

    def __call__(
        self,
        hidden_GBNC: Float[Array, "G B N C"],
        head: LinearHead,
        cfg_B: Float[Array, " B"],
        settings: DrawSettings,
    ) -> Float[Array, "B N V"]:
        """Computes the share of each code in each token's mix; arguments as in `head_bits.draw_head_bits`."""
        logits_BNV = _logits(hidden_GBNC, head, cfg_B)
        noise_BNV = gumbel(logits_BNV.shape, settings.seeds_B, settings.scale)
        share = settings.scale / max(1, self.n_scales - 1)
        return smooth_shares(logits_BNV, noise_BNV, share, settings, self.top_k)


def smooth_shares(
    logits_BNV: Float[Array, "B N V"],
    noise_BNV: Float[Array, "B N V"],
    share: float,
    settings: DrawSettings,
    top_k: int,
) -> Float[Array, "B N V"]:
    """Computes the shares of `SmoothDraw`; `share` is the scale's number over that of the last one."""
    kept_BNV = jnp.where(kept(logits_BNV, settings, top_k), logits_BNV, -jnp.inf)
    temperature = max(0.27 * (1 - 0.95 * share), 0.005)
    return jax.nn.softmax((kept_BNV * (1 + share) + noise_BNV) / temperature, -1)


def _logits(hidden_GBNC: jax.Array, head: LinearHead, cfg_B: jax.Array) -> jax.Array:
    return constrain(guided_logits(hidden_GBNC, head, cfg_B), "batch", "tokens", "indices")


def draw_index(
    logits_BNV: Float[Array, "B N V"], settings: DrawSettings, top_k: int = 0
) -> Int32[Array, "B N"]:
    """Draws an index for each token.

    Args:
      logits_BNV: float32, after guidance.
      settings: tau 0 takes the likeliest index; with top_p only the likeliest indices that together have this
        probability are drawn, and those as likely as the last of them (with one bit a token this is the rule of
        `bits.draw_bits`).
      top_k: before that, as of `IndexDraw`.
    """
    tau = settings.tau_B[:, None, None]
    kept_BNV, warm = kept(logits_BNV, settings, top_k), jnp.where(tau > 0, tau, 1.0)
    noise_BNV = jnp.where(tau > 0, gumbel(logits_BNV.shape, settings.seeds_B, settings.scale), 0.0)
    return jnp.argmax(jnp.where(kept_BNV, logits_BNV / warm + noise_BNV, -jnp.inf), -1).astype(jnp.int32)


def kept(logits_BNV: jax.Array, settings: DrawSettings, top_k: int) -> jax.Array:
    """Tells which indices top_k, and then top_p, leave to be drawn, bool [B,N,V]."""
    tau, top_p = settings.tau_B[:, None, None], settings.top_p_B[:, None, None]
    warm, is_cut = jnp.where(tau > 0, tau, 1.0), (top_p < 1) & (tau > 0)
    likeliest_BNV = jnp.ones(logits_BNV.shape, bool)
    if 0 < top_k < logits_BNV.shape[-1]:
        likeliest_BNV = in_top_k(logits_BNV, top_k)
        logits_BNV = jnp.where(likeliest_BNV, logits_BNV, -jnp.inf)
    return likeliest_BNV & jax.lax.cond(
        is_cut.any(),
        lambda logits: in_nucleus(logits / warm, top_p) | ~is_cut,
        lambda logits: jnp.ones(logits.shape, bool),
        logits_BNV,
    )


def in_top_k(logits_BNV: Float[Array, "B N V"], k: int) -> Bool[Array, "B N V"]:
    """Tells which indices are among the k likeliest, or as likely as the last of them.

    Without sorting, as `in_nucleus`: numbers whose order is that of the logits, bit by bit.
    """
    raw = jax.lax.bitcast_convert_type(logits_BNV, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    place_BNV = jnp.where(raw >= sign, ~raw, raw | sign)

    def with_bit(i, lowest_BN1):
        higher = lowest_BN1 | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
        count = jnp.sum(place_BNV >= higher, -1, keepdims=True)
        return jnp.where(count >= k, higher, lowest_BN1)

    lowest_BN1 = jnp.zeros((*place_BNV.shape[:2], 1), jnp.uint32)
    return place_BNV >= jax.lax.fori_loop(0, 32, with_bit, lowest_BN1)


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
