"""Softmax attention: one scale against its past, and all scales at once for training (spec section 4)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from infinity_jax.model.matmul import precision, transposed_in_memory
from infinity_jax.scales import ScaleSchedule

MASKED = -1e30


def _dot(a, b, contract: tuple[int, int], dtype: str) -> jax.Array:
    """Product of [B, H, ...] arrays over one axis each, rounded operands, float32 sums."""
    dimensions = (((contract[0],), (contract[1],)), ((0, 1), (0, 1)))
    kind = {"precision": precision(dtype), "preferred_element_type": jnp.float32}
    return lax.dot_general(a.astype(dtype), b.astype(dtype), dimensions, **kind)


# Forward and backward keep the weights as [K, Q]: so the left operand of all six products has its
# contracted axis last, which is the only quick form on a CPU, and only small arrays are transposed.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_BHQd, k_BHKd, v_BHKd, mask_BHKQ, dtype):
    return _attend_forward(q_BHQd, k_BHKd, v_BHKd, mask_BHKQ, dtype)[0]


def _attend_forward(q_BHQd, k_BHKd, v_BHKd, mask_BHKQ, dtype):
    q_BHQd, k_BHKd, v_BHKd = (x.astype(dtype) for x in (q_BHQd, k_BHKd, v_BHKd))
    scores_BHKQ = _dot(k_BHKd, q_BHQd, (3, 3), dtype)
    if mask_BHKQ is not None:
        scores_BHKQ = jnp.where(mask_BHKQ, scores_BHKQ, MASKED)
    weights_BHKQ = jnp.exp(scores_BHKQ - scores_BHKQ.max(2, keepdims=True))
    total_BHQ1 = weights_BHKQ.sum(2)[..., None]
    weights_BHKQ = weights_BHKQ.astype(dtype)
    out_BHdQ = _dot(transposed_in_memory(v_BHKd), weights_BHKQ, (3, 2), dtype)
    # Dividing after the product touches `head` numbers a query instead of K.
    out_BHQd = transposed_in_memory(out_BHdQ) / total_BHQ1
    return out_BHQd, (q_BHQd, k_BHKd, v_BHKd, weights_BHKQ, total_BHQ1, out_BHQd)


def _attend_backward(dtype, saved, dout_BHQd):
    q_BHQd, k_BHKd, v_BHKd, weights_BHKQ, total_BHQ1, out_BHQd = saved
    dout_BHQd = dout_BHQd / total_BHQ1
    mean_BH1Q = (dout_BHQd * out_BHQd).sum(-1)[:, :, None]
    dout_BHQd = dout_BHQd.astype(dtype)
    dv_BHKd = _dot(weights_BHKQ, dout_BHQd, (3, 2), dtype)
    dweights_BHKQ = _dot(v_BHKd, dout_BHQd, (3, 3), dtype)
    dscores_BHKQ = (weights_BHKQ.astype(jnp.float32) * (dweights_BHKQ - mean_BH1Q)).astype(dtype)
    dk_BHKd = _dot(dscores_BHKQ, q_BHQd, (3, 2), dtype)
    dq_BHdQ = _dot(transposed_in_memory(k_BHKd), dscores_BHKQ, (3, 2), dtype)
    return transposed_in_memory(dq_BHdQ), dk_BHKd, dv_BHKd, None


_attend.defvjp(_attend_forward, _attend_backward)


def attend(
    q_BHQd: jax.Array,
    k_BHKd: jax.Array,
    v_BHKd: jax.Array,
    dtype: str,
    mask: jax.Array | np.ndarray | None = None,
) -> jax.Array:
    """softmax(q k^T) v with softmax scale 1, float32 [B, H, Q, head].

    Args:
      q_BHQd, k_BHKd, v_BHKd: float32.
      dtype: what the operands of the products are rounded to; the softmax is float32.
      mask: bool of four axes, broadcast to [B, H, Q, K]; False = not visible. A query that sees nothing
        gets the mean of v.
    """
    return _attend(q_BHQd, k_BHKd, v_BHKd, None if mask is None else mask.swapaxes(2, 3), dtype)


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
    mask = block_causal_mask(schedule.prefix(joined))[None, None] if joined > 1 else None
    parts = [attend(q_BHLd[:, :, :end], k_BHLd[:, :, :end], v_BHLd[:, :, :end], dtype, mask)]
    for start, end in zip(offsets[joined:-1], offsets[joined + 1 :], strict=True):
        parts.append(attend(q_BHLd[:, :, start:end], k_BHLd[:, :, :end], v_BHLd[:, :, :end], dtype))
    return jnp.concatenate(parts, 2) if len(parts) > 1 else parts[0]
