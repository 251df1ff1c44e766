"""Attention on GPUs: cuDNN's flash attention, through `jax.nn.dot_product_attention`.

Nothing of it has run on a GPU, and it cannot even be lowered where cuDNN is missing: the tests call the same function
with jax's own implementation.
"""

import functools
import re

import jax
import jax.numpy as jnp

from infinity_jax.runtime.devices import Axes, compute_capability, on_each_device

IMPLEMENTATION = "cudnn"
AMPERE = 8  # its compute capability
LARGEST_HEAD = 128  # on GPUs before Hopper; no model here has larger ones


def possible(head: int) -> bool:
    """Tells whether cuDNN has attention for heads of this size on the GPU that is traced for.

    It has none on GPUs before Ampere, and AMD's have no cuDNN; theirs is no number like "9.0".
    """
    major = re.match(r"(\d+)\.\d+$", compute_capability())
    return major is not None and int(major[1]) >= AMPERE and head % 8 == 0 and head <= LARGEST_HEAD


def attend_cudnn(
    q_BHQd: jax.Array,
    k_BHKd: jax.Array,
    v_BHKd: jax.Array,
    mask_BK: jax.Array | None = None,
    first: bool = False,
    count: int | None = None,
) -> jax.Array:
    """Computes softmax(q k^T) v with softmax scale 1 and bfloat16 operands, [B, H, Q, head] of the queries' type.

    On a mesh each device computes its pictures and heads.

    Args:
      q_BHQd, k_BHKd, v_BHKd: float32 or bfloat16.
      mask_BK: bool, False = not visible. Each picture has something visible.
      first: whether the visible keys are each picture's first. cuDNN then gets their number and skips the others;
        else it gets a number to add to each score, an array [B, 1, Q, K].
      count: see `attention.attend`.
    """
    Q, K = q_BHQd.shape[2], k_BHKd.shape[2] if count is None else count
    axes = ("batch", None, "attention_heads" if mask_BK is None else "heads", None)
    # Training wants even lengths; what is added to the keys is hidden by the mask or by their number.
    arrays = [_even(x.astype("bfloat16").swapaxes(1, 2)) for x in (q_BHQd, k_BHKd, v_BHKd)]
    in_axes: list[Axes] = [axes] * 3
    if mask_BK is not None:
        arrays.append(_even(mask_BK))
        in_axes.append(("batch", None))
    out_BQHd = on_each_device(functools.partial(_attend, keys=K, first=first), in_axes, axes)(*arrays)
    return out_BQHd[:, :Q].swapaxes(1, 2).astype(q_BHQd.dtype)


def _attend(
    q_BQHd: jax.Array,
    k_BKHd: jax.Array,
    v_BKHd: jax.Array,
    mask_BK: jax.Array | None = None,
    *,
    keys: int,
    first: bool,
) -> jax.Array:
    B, Q, K = *q_BQHd.shape[:2], k_BKHd.shape[1]
    mask_B1QK = keys_B = None
    if mask_BK is not None and first:
        keys_B = mask_BK.sum(1, dtype=jnp.int32)
    elif mask_BK is not None:
        mask_B1QK = jnp.broadcast_to(mask_BK[:, None, None], (B, 1, Q, K))
    elif keys < K:
        keys_B = jnp.full(B, keys, jnp.int32)
    return jax.nn.dot_product_attention(
        q_BQHd,
        k_BKHd,
        v_BKHd,
        mask=mask_B1QK,
        key_value_seq_lengths=keys_B,
        scale=1.0,
        implementation=IMPLEMENTATION,
    )


def _even(x: jax.Array) -> jax.Array:
    """Adds one more, of zeros, along axis 1 where that is odd."""
    return jnp.pad(x, [(0, x.shape[axis] % 2 if axis == 1 else 0) for axis in range(x.ndim)])
