"""GroupNorm and swish with float32 statistics in two passes: of a map, or joined over strips of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import PyTree

GROUPS, EPSILON = 32, 1e-6


class Moments(NamedTuple):
    """Mean and variance of each group of channels, float32 [B,groups], or [strips,B,groups]."""

    mean: jax.Array
    variance: jax.Array


class Norm(NamedTuple):
    """(x - mean) * factor + bias: mean and factor float32 [B,1,1,C], bias [C]."""

    mean: jax.Array
    factor: jax.Array
    bias: jax.Array


def moments(x_BnWC: jax.Array) -> Moments:
    """Computes the moments of one strip; where the channels are no groups, those of all channels together."""
    groups = GROUPS if x_BnWC.shape[-1] % GROUPS == 0 else 1
    each = x_BnWC.shape[-1] // groups

    def mean(x: jax.Array) -> jax.Array:
        return x.mean((1, 2)).reshape(-1, groups, each).mean(-1)

    x_BnWC = x_BnWC.astype(jnp.float32)
    center = mean(x_BnWC)
    return Moments(center, mean((x_BnWC - _by_channel(center, each)) ** 2))


def joined(by_strip: Moments) -> Moments:
    """Joins the moments of strips of equal size to those of the map."""
    mean = by_strip.mean.mean(0)
    return Moments(mean, (by_strip.variance + (by_strip.mean - mean) ** 2).mean(0))


def norm(moments: Moments, params: PyTree) -> Norm:
    """Makes the GroupNorm of a map with these moments."""
    each = params["scale"].shape[0] // GROUPS
    factor = _by_channel(lax.rsqrt(moments.variance + EPSILON), each) * params["scale"]
    return Norm(_by_channel(moments.mean, each), factor, params["bias"])


def _by_channel(x_BG: jax.Array, each: int) -> jax.Array:
    return jnp.repeat(x_BG, each, -1)[:, None, None]


def normalised_swish(x_BHWC: jax.Array, norm: Norm, dtype: DTypeLike) -> jax.Array:
    """Normalises a map and applies swish, in float32; the result has another dtype."""
    normal = (x_BHWC.astype(jnp.float32) - norm.mean) * norm.factor + norm.bias
    return jax.nn.swish(normal).astype(dtype)


@jax.checkpoint
def group_norm_swish(x_BHWC: jax.Array, params: Any) -> jax.Array:
    """Applies GroupNorm and swish to a map; the result has its dtype.

    The backward pass computes it again, so that all that is kept of it is the map, and nothing in float32.
    """
    return normalised_swish(x_BHWC, norm(moments(x_BHWC), params), x_BHWC.dtype)
