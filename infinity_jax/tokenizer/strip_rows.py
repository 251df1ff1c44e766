"""Some rows of a map: reading, normalisation, and statistics that are joined over strips (see `strips.py`)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import PyTree

from infinity_jax.tokenizer.autoencoder import EPSILON, GROUPS

Row = jax.Array | int
# (first row, number of rows, rows below them) -> those rows; any finite numbers below the end of the map.
Read = Callable[[Row, int, int], jax.Array]


class Moments(NamedTuple):
    """Mean and variance of each group of channels, float32 [B,groups], or [strips,B,groups]."""

    mean: jax.Array
    variance: jax.Array


class Norm(NamedTuple):
    """(x - mean) * factor + bias: mean and factor float32 [B,1,1,C], bias [C]."""

    mean: jax.Array
    factor: jax.Array
    bias: jax.Array


def as_stored(x: jax.Array) -> jax.Array:
    """Brings a map into the form in which it is held: bfloat16 as its bits.

    A CPU has no bfloat16, and XLA would make a whole map float32 and back for every strip that is written into it.
    """
    return lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def empty(shape: tuple[int, ...], dtype: DTypeLike, after: Moments) -> jax.Array:
    """Makes a stored map to write into.

    It is filled with a number that is known only when the map before is there, so that the compiler does not make all
    maps of the program at its start.
    """
    return jnp.broadcast_to(as_stored(after.mean[0, 0].astype(dtype)), shape)


def read(stored_BHWC: jax.Array, first: Row, count: int, below: int) -> jax.Array:
    """Reads rows [first, first + count) and those below; below the end of the map its last row is repeated."""
    last = stored_BHWC.shape[1] - 1
    parts = [lax.dynamic_slice_in_dim(stored_BHWC, first, count, 1)]
    for i in range(below):
        parts.append(lax.dynamic_slice_in_dim(stored_BHWC, jnp.minimum(first + count + i, last), 1, 1))
    x = jnp.concatenate(parts, 1)
    return lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x


def read_around(read: Read, height: int, first: Row, count: int, below: int) -> jax.Array:
    """Reads rows [first - 1, first + count + below) of a map of some height, zero outside of it."""
    x = jnp.concatenate([read(jnp.maximum(first - 1, 0), 1, 0), read(first, count, below)], 1)
    row = first - 1 + jnp.arange(x.shape[1])
    return jnp.where(((row >= 0) & (row < height))[:, None, None], x, 0)


def activated(x_BnWC: jax.Array, norm: Norm, inside: Row, dtype: DTypeLike) -> jax.Array:
    """Applies GroupNorm and swish; zero from row number `inside` on, where the map has ended."""
    normal = (x_BnWC.astype(jnp.float32) - norm.mean) * norm.factor + norm.bias
    x = jax.nn.swish(normal).astype(dtype)
    return jnp.where((jnp.arange(x.shape[1]) < inside)[:, None, None], x, 0)


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
