"""Some rows of a map: how they are held, read and normalised (see `strips.py`)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from infinity_jax.tokenizer.group_norm import Moments, Norm, normalised_swish

Row = jax.Array | int
# (first row, number of rows, rows below them) -> those rows; any finite numbers below the end of the map.
Read = Callable[[Row, int, int], jax.Array]


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
    x = normalised_swish(x_BnWC, norm, dtype)
    return jnp.where((jnp.arange(x.shape[1]) < inside)[:, None, None], x, 0)
