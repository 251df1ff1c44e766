"""Symbols that are given instead of drawn: the one mechanism behind keeping parts of a picture (docs/spec_var.md 5)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from infinity_jax.tokenizer import pyramid
from infinity_jax.tokenizer.model import exact


class Given(NamedTuple):
    """What is known of pictures that are drawn anew in part: arguments of the sampler, which is compiled once for all.

    Attributes:
      where: of each scale bool [B,h_k,w_k] or [1,h_k,w_k], where symbols are given; of the first scales alone, if the
        later ones are drawn.
      symbols: of each of these scales, as of `sampler.Drawn`: they are given as they are. None: those of
        `features_BHWd` are.
      features_BHWd: float32, the tokenizer's of pictures. Each scale quantises what the sum of the codes so far, given
        and drawn, leaves to explain of them, as self-correction does in training.
    """

    where: tuple[jax.Array, ...]
    symbols: tuple[jax.Array, ...] | None = None
    features_BHWd: jax.Array | None = None


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


def put_in(own_Bhw: Any, where_Bhw: jax.Array, drawn_Bhw: jax.Array) -> jax.Array:
    """Puts given symbols in the place of drawn ones; where shares of codes are drawn, a given code has all of it."""
    if jnp.issubdtype(drawn_Bhw.dtype, jnp.floating):
        own_Bhw = jax.nn.one_hot(own_Bhw, drawn_Bhw.shape[-1])
    where_Bhw = where_Bhw.reshape(*where_Bhw.shape, *[1] * (drawn_Bhw.ndim - 3))
    return jnp.where(where_Bhw, own_Bhw.astype(drawn_Bhw.dtype), drawn_Bhw)
