"""Symbols that are given instead of drawn: the one mechanism behind keeping parts of a picture (docs/spec_var.md 5)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from infinity_jax.config import TokenizerConfig
from infinity_jax.tokenizer import pyramid
from infinity_jax.tokenizer.model import exact


class Given(NamedTuple):
    """What is known of pictures that are drawn anew in part: arguments of the sampler, which is compiled once for all.

    Attributes:
      where: of each scale bool [B,h_k,w_k] or [1,h_k,w_k], where symbols are given.
      symbols: of each scale, as of `sampler.Drawn`: they are given as they are. None: those of `features_BHWd` are.
      features_BHWd: float32, the tokenizer's of pictures. Each scale quantises what the sum of the codes so far, given
        and drawn, leaves to explain of them, as self-correction does in training.
    """

    where: tuple[jax.Array, ...]
    symbols: tuple[jax.Array, ...] | None = None
    features_BHWd: jax.Array | None = None


def with_given(
    drawn_Bhw: jax.Array,
    given: Given,
    running_sum_BHWd: jax.Array,
    quantizer: pyramid.Quantizer,
    tokenizer: TokenizerConfig,
    k: int,
) -> jax.Array:
    """Puts the given symbols of scale k in the place of drawn ones.

    Where shares of codes are drawn, a given code has all of it.

    Args:
      drawn_Bhw: the transformer's symbols, as of `sampler.Drawn`.
      running_sum_BHWd: the sum of the codes of the scales before.
    """
    if given.symbols is not None:
        own_Bhw = given.symbols[k]
    else:
        assert given.features_BHWd is not None, "neither symbols nor features are given"
        side = tokenizer.patchify
        size = drawn_Bhw.shape[1] * side, drawn_Bhw.shape[2] * side
        with exact("float32"):
            z = pyramid.residual_at_scale(given.features_BHWd, running_sum_BHWd, size, quantizer)
            own_Bhw = quantizer.choose(z)
        if side > 1:
            own_Bhw = pyramid.to_transformer(own_Bhw, side)
    if jnp.issubdtype(drawn_Bhw.dtype, jnp.floating):
        own_Bhw = jax.nn.one_hot(own_Bhw, drawn_Bhw.shape[-1])
    where = given.where[k].reshape(*given.where[k].shape, *[1] * (drawn_Bhw.ndim - 3))
    return jnp.where(where, own_Bhw.astype(drawn_Bhw.dtype), drawn_Bhw)
