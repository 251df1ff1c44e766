"""Softmax attention: one scale against its past, and all scales at once for training (docs/spec.md section 4).

Which program computes it is decided by where it will run and how much there is to compute: plain XLA
(`attention_xla.py`), splash attention on TPUs (`attention_splash.py`) or cuDNN on GPUs (`attention_cudnn.py`).
"""

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.runtime.devices import platform
from infinity_jax.scales import ScaleSchedule
from infinity_jax.transformer.kernels import attention_cudnn
from infinity_jax.transformer.kernels.attention_cudnn import attend_cudnn
from infinity_jax.transformer.kernels.attention_splash import attend_splash
from infinity_jax.transformer.kernels.attention_xla import attend_xla

# Scores of one head from which a fused kernel is used. Fewer are little work, of which a TPU's kernel would do up to
# twice as much: it rounds lengths up to its blocks.
MANY_SCORES = {"tpu": 2**20, "gpu": 2**16}


def attend(
    q_BHQd: jax.Array,
    k_BHKd: jax.Array,
    v_BHKd: jax.Array,
    dtype: str,
    mask: jax.Array | np.ndarray | None = None,
    first: bool = False,
    count: int | None = None,
) -> jax.Array:
    """Computes softmax(q k^T) v with softmax scale 1, [B, H, Q, head] of the queries' type.

    Args:
      q_BHQd, k_BHKd, v_BHKd: float32, or already of the type `dtype`.
      dtype: what the operands of the products are rounded to; the softmax is float32.
      mask: bool of four axes, broadcast to [B, H, Q, K]; False = not visible. A query that sees nothing
        gets the mean of v.
      first: whether a mask of keys alone, [B, 1, 1, K], shows each picture's first ones, as many as it has: the mask
        of a text. cuDNN is then told their number.
      count: how many of the K keys and values there are, the first ones; None: all. Not with a mask.
    """
    assert mask is None or count is None
    count = k_BHKd.shape[2] if count is None else count
    fused = _fused(q_BHQd.shape[2] * count, q_BHQd.shape[3], dtype)
    if fused == "cudnn" and mask is None:
        return attend_cudnn(q_BHQd, k_BHKd, v_BHKd, count=count)
    k_BHKd, v_BHKd = k_BHKd[:, :, :count], v_BHKd[:, :, :count]
    if not fused or (mask is not None and mask.shape[1:3] != (1, 1)):
        return attend_xla(q_BHQd, k_BHKd, v_BHKd, None if mask is None else jnp.asarray(mask), dtype)
    mask_BK = None
    if mask is not None:
        mask_BK = jnp.broadcast_to(jnp.asarray(mask)[:, 0, 0], (k_BHKd.shape[0], k_BHKd.shape[2]))
        # A kernel's softmax of nothing would count its padding, so such queries see all, with equal weights.
        nothing_B1 = ~mask_BK.any(1, keepdims=True)
        q_BHQd, mask_BK = jnp.where(nothing_B1[:, :, None, None], 0, q_BHQd), mask_BK | nothing_B1
    if fused == "splash":
        return attend_splash(q_BHQd, k_BHKd, v_BHKd, dtype, mask_BK=mask_BK)
    return attend_cudnn(q_BHQd, k_BHKd, v_BHKd, mask_BK, first)


def _fused(scores: int, head: int, dtype: str) -> str | None:
    """Names the kernel for so many scores a head on the platform that is traced for; None is XLA.

    Both kernels are for bfloat16: with float32 operands they would round, or refuse.
    """
    where = platform()
    if dtype != "bfloat16" or scores < MANY_SCORES.get(where, 0):
        return None
    if where == "tpu":
        return "splash"
    return "cudnn" if where == "gpu" and attention_cudnn.possible(head) else None


def block_causal_mask(schedule: ScaleSchedule) -> np.ndarray:
    """Makes bool [L, L]: a token (row) sees its own scale and all earlier ones."""
    scale = np.asarray(schedule.scale_of_token)
    return scale[:, None] >= scale[None, :]


def joined_scales(schedule: ScaleSchedule) -> int:
    """Counts the first scales that are small enough to share one masked product: 64 tokens or a 16th of all."""
    limit = max(64, schedule.length // 16)
    return max(1, sum(end <= limit for end in schedule.offsets[1:]))


def block_causal_attention(
    q_BHLd: jax.Array, k_BHLd: jax.Array, v_BHLd: jax.Array, schedule: ScaleSchedule, dtype: str
) -> jax.Array:
    """Lets all tokens look at their own and earlier scales, [B, H, L, head] of the queries' type.

    On a TPU it is one kernel that skips blocks of what is not visible. Elsewhere each larger scale is one dense
    product with its prefix of the keys, so nothing that is masked out gets computed; the first small scales share one
    product under a small mask.
    """
    offsets = schedule.offsets
    if _fused(schedule.length**2, q_BHLd.shape[3], dtype) == "splash":
        runs = tuple(zip(schedule.tokens, offsets[1:], strict=True))
        return attend_splash(q_BHLd, k_BHLd, v_BHLd, dtype, runs)
    joined = joined_scales(schedule)
    end = offsets[joined]
    mask = block_causal_mask(schedule.prefix(joined))[None, None] if joined > 1 else None
    parts = [attend(q_BHLd[:, :, :end], k_BHLd[:, :, :end], v_BHLd[:, :, :end], dtype, mask)]
    for start, end in zip(offsets[joined:-1], offsets[joined + 1 :], strict=True):
        parts.append(attend(q_BHLd[:, :, start:end], k_BHLd[:, :, :end], v_BHLd[:, :, :end], dtype))
    return jnp.concatenate(parts, 2) if len(parts) > 1 else parts[0]
