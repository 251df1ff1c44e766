"""A token's bits as one number, for what counts or predicts whole tokens: index = sum of bit_i * 2^i."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Int32

MOST_BITS = 31  # of an int32


def to_index(bits: Bool[Array, "*n d"] | Int[Array, "*n d"]) -> Int32[Array, " *n"]:
    """Joins bits [..., d], 0 or 1, to an index int32 [...]; d is at most 31."""
    d = bits.shape[-1]
    assert d <= MOST_BITS, f"{d} bits do not fit an int32"
    return jnp.sum(bits.astype(jnp.int32) << jnp.arange(d, dtype=jnp.int32), axis=-1)


def to_bits(index: Int[Array, " *n"], d: int) -> Bool[Array, "*n d"]:
    """Splits an index [...] into bits bool [..., d]."""
    return (index[..., None] >> jnp.arange(d, dtype=index.dtype) & 1).astype(bool)
