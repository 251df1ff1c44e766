"""Softmax attention: one scale against its past, and all scales at once for training (spec section 4)."""

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.model.matmul import einsum
from infinity_jax.scales import ScaleSchedule

MASKED = -1e30


def attend(
    q_BHQd: jax.Array, k_BHKd: jax.Array, v_BHKd: jax.Array, dtype: str, mask: jax.Array | np.ndarray | None = None
) -> jax.Array:
    """softmax(q k^T) v with softmax scale 1, float32 [B, H, Q, head].

    Args:
      q_BHQd, k_BHKd, v_BHKd: float32.
      dtype: what the operands of the two products are rounded to; the softmax is float32.
      mask: bool, broadcast to [B, H, Q, K]; False = not visible. A query that sees nothing gets the mean of v.
    """
    scores_BHQK = einsum("bhqd,bhkd->bhqk", q_BHQd, k_BHKd, dtype)
    if mask is not None:
        scores_BHQK = jnp.where(mask, scores_BHQK, MASKED)
    highest = jax.lax.stop_gradient(scores_BHQK.max(-1, keepdims=True))
    weights_BHQK = jnp.exp(scores_BHQK - highest)
    # Dividing after the product touches `head` numbers a query instead of K.
    total_BHQ1 = weights_BHQK.sum(-1, keepdims=True)
    return einsum("bhqk,bhkd->bhqd", weights_BHQK, v_BHKd, dtype) / total_BHQ1


def block_causal_mask(schedule: ScaleSchedule) -> np.ndarray:
    """bool [L, L]: a token (row) sees its own scale and all earlier ones."""
    scale = np.asarray(schedule.scale_of_token)
    return scale[:, None] >= scale[None, :]


def joined_scales(schedule: ScaleSchedule) -> int:
    """How many first scales are small enough to share one masked product: at most 64 tokens or an eighth of all."""
    limit = max(64, schedule.length // 8)
    return max(1, sum(end <= limit for end in schedule.offsets[1:]))


def block_causal_attention(
    q_BHLd: jax.Array, k_BHLd: jax.Array, v_BHLd: jax.Array, schedule: ScaleSchedule, dtype: str
) -> jax.Array:
    """Attention of all tokens to their own and earlier scales, float32 [B, H, L, head].

    Each larger scale is one dense product with its prefix of the keys, so nothing that
    is masked out gets computed; the first small scales share one product under a small mask.
    """
    joined = joined_scales(schedule)
    offsets = schedule.offsets
    end = offsets[joined]
    mask = block_causal_mask(schedule.prefix(joined)) if joined > 1 else None
    parts = [attend(q_BHLd[:, :, :end], k_BHLd[:, :, :end], v_BHLd[:, :, :end], dtype, mask)]
    for start, end in zip(offsets[joined:-1], offsets[joined + 1 :], strict=True):
        parts.append(attend(q_BHLd[:, :, start:end], k_BHLd[:, :, :end], v_BHLd[:, :, :end], dtype))
    return jnp.concatenate(parts, 2) if len(parts) > 1 else parts[0]
