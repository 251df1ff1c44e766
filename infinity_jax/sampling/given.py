"""Symbols that are given instead of drawn: the one mechanism behind keeping parts of a picture (docs/spec_var.md 5)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from infinity_jax.tokenizer import pyramid
from infinity_jax.tokenizer.model import exact


class Given(NamedTuple):
    """What is known of pictures that are drawn anew in part: arguments of the sampler, which is compiled once for all.

    Attributes:
      where: of each scale bool [B,h_k,w_k] or [1,h_k,w_k], where symbols are given, or of bits [B,h_k,w_k,D], which of
        them are; float32 [B,h_k,w_k] from 0 to 1 blends the codes of given and drawn ones. Of the first scales alone,
        if the later ones are drawn.
      symbols: of each of these scales, as of `sampler.Drawn`: they are given as they are. None: those of
        `features_BHWd` are.
      features_BHWd: float32, the tokenizer's of pictures. Each scale quantises what the sum of the codes so far, given
        and drawn, leaves to explain of them, as self-correction does in training.
      before: of each scale float32 [B,h_k,w_k,D], how likely each bit was by another prompt: bits whose probability has
        not changed by more than `threshold_B`, float32, are given too. None: only `where` says what is.
    """

    where: tuple[jax.Array, ...]
    symbols: tuple[jax.Array, ...] | None = None
    features_BHWd: jax.Array | None = None
    before: tuple[jax.Array, ...] | None = None
    threshold_B: jax.Array | None = None


def given_symbols(
    given: Given,
    k: int,
    size: tuple[int, int],
    running_sum_BHWd: jax.Array,
    quantizer: pyramid.Quantizer,
    patchify: int,
) -> jax.Array:
    """Finds the symbols of scale k that are given: [B,h_k,w_k,...].

    Args:
      size: (h_k, w_k), of the transformer's tokens.
      running_sum_BHWd: the sum of the codes of the scales before.
      patchify: the tokenizer's.
    """
    if given.symbols is not None:
        return given.symbols[k]
    assert given.features_BHWd is not None, "neither symbols nor features are given"
    finer = size[0] * patchify, size[1] * patchify
    with exact("float32"):
        z = pyramid.residual_at_scale(given.features_BHWd, running_sum_BHWd, finer, quantizer)
        own_Bhw = quantizer.choose(z)
    return pyramid.to_transformer(own_Bhw, patchify) if patchify > 1 else own_Bhw


def kept(given: Given, k: int, probability_BhwD: Any) -> jax.Array:
    """Tells where symbols of scale k are given, as of `Given.where`.

    Args:
      probability_BhwD: makes float32, how likely the bits are now; it is called where `given.before` needs it.
    """
    if given.before is None or given.threshold_B is None:
        return given.where[k]
    change_BhwD = jnp.abs(probability_BhwD() - given.before[k])
    return given.where[k][..., None] | (change_BhwD <= given.threshold_B[:, None, None, None])


def put_in(own_Bhw: Any, where_Bhw: jax.Array, drawn_Bhw: jax.Array) -> jax.Array:
    """Puts given symbols in the place of drawn ones; where shares of codes are drawn, a given code has all of it."""
    if jnp.issubdtype(drawn_Bhw.dtype, jnp.floating):
        own_Bhw = jax.nn.one_hot(own_Bhw, drawn_Bhw.shape[-1])
    if is_soft(where_Bhw):
        where_Bhw = where_Bhw > 0.5
    where_Bhw = where_Bhw.reshape(*where_Bhw.shape, *[1] * (drawn_Bhw.ndim - where_Bhw.ndim))
    return jnp.where(where_Bhw, own_Bhw.astype(drawn_Bhw.dtype), drawn_Bhw)


def blended(
    own_BHWd: Float[Array, "B H W d"], drawn_BHWd: Float[Array, "B H W d"], where_Bhw: Float[Array, "B h w"]
) -> Float[Array, "B H W d"]:
    """Blends codes, of the given ones the share `where`; the tokenizer's grid may be finer than its."""
    side = own_BHWd.shape[1] // where_Bhw.shape[1]
    share_BHW = where_Bhw.repeat(side, 1).repeat(side, 2)[..., None]
    return share_BHW * own_BHWd + (1 - share_BHW) * drawn_BHWd


def is_soft(where_Bhw: jax.Array) -> bool:
    """Tells whether codes are blended."""
    return jnp.issubdtype(where_Bhw.dtype, jnp.floating)
