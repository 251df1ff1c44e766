"""Attention in plain XLA, for any device and any type: the form for CPUs, and where a fused kernel cannot be used.

Few scores are computed at once, and the backward pass gets the attention weights. On a CPU many are computed a head at
a time, and in parts where one head has many; there the backward pass computes the weights again. That is faster than
keeping them: the scores stay in the caches, and main memory would take longer than the product.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from infinity_jax.runtime.devices import platform
from infinity_jax.runtime.sharding import on_mesh
from infinity_jax.transformer.kernels.matmul import dot, transposed_in_memory
from infinity_jax.transformer.kernels.storage import from_storage, to_storage
from infinity_jax.transformer.layers import LINEAR

MASKED = -1e30
# On a CPU: scores of all heads from which one head after the other is faster than all at once, and the most scores
# of one head that the backward pass, which has several arrays of them, computes in one go (4 MiB each). The forward
# pass has one, and takes FORWARD times as many: each product first copies all keys or values into its own order,
# which many short parts would do again and again.
MANY_SCORES, SCORES_AT_ONCE, FORWARD = 2**22, 2**20, 4


def attend_xla(q_BHQd: Array, k_BHKd: Array, v_BHKd: Array, mask_BHQK: Array | None, dtype: str) -> Array:
    """Computes softmax(q k^T) v, [B, H, Q, head]; arguments and type as `attention.attend` has them."""
    types = (q_BHQd.dtype.name, k_BHKd.dtype.name, v_BHKd.dtype.name)
    return _attend(q_BHQd, k_BHKd, v_BHKd, mask_BHQK, dtype, types)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attend(
    q_BHQd: Array, k_BHKd: Array, v_BHKd: Array, mask_BHQK: Array | None, dtype: str, types: tuple[str, ...]
) -> Array:
    return _attend_forward(q_BHQd, k_BHKd, v_BHKd, mask_BHQK, dtype, types)[0]


def _attend_forward(
    q_BHQd: Array, k_BHKd: Array, v_BHKd: Array, mask_BHQK: Array | None, dtype: str, types: tuple[str, ...]
) -> tuple[Array, Any]:
    q_BHQd, k_BHKd, v_BHKd = (x.astype(dtype) for x in (q_BHQd, k_BHKd, v_BHKd))
    forward = functools.partial(_head_forward, dtype=dtype)
    found = _for_each_head(forward, q_BHQd, k_BHKd, v_BHKd, mask_BHQK)
    found = found[0].astype(types[0]), *found[1:]
    out_BHQd, total_BHQ1, *weights = (checkpoint_name(x, LINEAR) for x in found)
    rounded = [to_storage(x) for x in (q_BHQd, k_BHKd, v_BHKd, *weights)]
    return out_BHQd, (rounded, mask_BHQK, out_BHQd, total_BHQ1)


def _attend_backward(dtype: str, types: tuple[str, ...], saved: Any, dout_BHQd: Array) -> tuple:
    rounded, mask_BHQK, out_BHQd, total_BHQ1 = saved
    q_BHQd, k_BHKd, v_BHKd, *weights = (from_storage(x) for x in rounded)
    backward = functools.partial(_head_backward, dtype=dtype)
    of_queries = (out_BHQd, total_BHQ1, dout_BHQd, *weights)
    gradients = _for_each_head(backward, q_BHQd, k_BHKd, v_BHKd, mask_BHQK, *of_queries)
    return *(x.astype(kind) for x, kind in zip(gradients, types, strict=True)), None


_attend.defvjp(_attend_forward, _attend_backward)


def _for_each_head(
    of_one: Callable, q_BHQd: Array, k_BHKd: Array, v_BHKd: Array, mask_BHQK: Array | None, *others
) -> Any:
    """Runs the function of one head on all heads of all pictures: at once, or one after the other."""
    B, H, Q, _ = q_BHQd.shape
    scores = B * H * Q * k_BHKd.shape[2]
    at_once = on_mesh() or platform() != "cpu" or scores < MANY_SCORES
    of_one = functools.partial(of_one, keep_weights=at_once)
    arrays = [q_BHQd, k_BHKd, v_BHKd, *others]
    if mask_BHQK is None:
        of_one = functools.partial(_without_mask, of_one)
    else:
        arrays.insert(3, jnp.broadcast_to(mask_BHQK, (B, H, *mask_BHQK.shape[2:])))
    # On a mesh two axes that are split cannot become one without moving data.
    if on_mesh():
        return jax.vmap(jax.vmap(of_one))(*arrays)
    flat = [x.reshape(B * H, *x.shape[2:]) for x in arrays]
    if at_once:
        results = jax.vmap(of_one)(*flat)
    else:
        results = lax.map(lambda of_head: of_one(*map(from_storage, of_head)), [to_storage(x) for x in flat])
    return jax.tree.map(lambda x: x.reshape(B, H, *x.shape[1:]), results)


def _without_mask(of_one: Callable, q_Qd: Array, k_Kd: Array, v_Kd: Array, *others) -> Any:
    return of_one(q_Qd, k_Kd, v_Kd, None, *others)


def _weights(q_Qd: Array, k_Kd: Array, mask_QK: Array | None, dtype: str) -> Array:
    """Computes float32 weights, relative to that of the largest score of a query.

    On a CPU all of it is one kernel if nothing else uses the scores or the largest of them.
    """
    scores_QK = dot(q_Qd, k_Kd, [1], [1], dtype)
    if mask_QK is not None:
        scores_QK = jnp.where(mask_QK, scores_QK, MASKED)
    return jnp.exp(scores_QK - scores_QK.max(1, keepdims=True))


# The left operand of all products has its contracted axis last, which is the only quick form on a CPU, and only small
# arrays are transposed for it.
def _head_forward(
    q_Qd: Array, k_Kd: Array, v_Kd: Array, mask_QK: Array | None, dtype: str, keep_weights: bool
) -> tuple[Array, ...]:
    """Computes for each query of one head its output, the sum of its weights, and the weights if they are kept."""

    def of_some(q_Qd: Array) -> tuple:
        weights_QK = _weights(q_Qd, k_Kd, mask_QK, dtype)
        total_Q1 = weights_QK.sum(1, keepdims=True)
        weights_QK = weights_QK.astype(dtype)
        # Dividing after the product touches `head` numbers a query instead of K.
        out_Qd = dot(weights_QK, v_Kd, [1], [0], dtype) / total_Q1
        return (out_Qd, total_Q1, weights_QK) if keep_weights else (out_Qd, total_Q1)

    parts = 1 if keep_weights else _parts(q_Qd, k_Kd, mask_QK, FORWARD * SCORES_AT_ONCE)
    if parts == 1:
        return of_some(q_Qd)
    return tuple(_joined(x, len(q_Qd)) for x in lax.map(of_some, _split(q_Qd, parts)))


def _head_backward(
    q_Qd: Array,
    k_Kd: Array,
    v_Kd: Array,
    mask_QK: Array | None,
    out_Qd: Array,
    total_Q1: Array,
    dout_Qd: Array,
    *weights: Array,
    dtype: str,
    keep_weights: bool,
) -> tuple[Array, Array, Array]:
    """Computes the gradients of queries, keys and values of one head; the weights are given if they were kept."""
    dout_Qd = dout_Qd / total_Q1
    mean_Q1 = (dout_Qd * out_Qd).sum(1, keepdims=True)

    def of_some(sums_dK: Any, of_queries: Any) -> tuple:
        q_Qd, dout_Qd, mean_Q1, *weights = of_queries
        weights_QK = weights[0] if keep_weights else _weights(q_Qd, k_Kd, mask_QK, dtype)
        dscores_QK = weights_QK.astype(jnp.float32) * (dot(dout_Qd, v_Kd, [1], [1], dtype) - mean_Q1)
        if mask_QK is not None:  # also where a query sees nothing, and all its weights are 1
            dscores_QK = jnp.where(mask_QK, dscores_QK, 0)
        dscores_QK = dscores_QK.astype(dtype)
        dk_dK = dot(transposed_in_memory(q_Qd), dscores_QK, [1], [0], dtype)
        dv_dK = dot(transposed_in_memory(dout_Qd), weights_QK.astype(dtype), [1], [0], dtype)
        sums_dK = (dk_dK, dv_dK) if sums_dK is None else (sums_dK[0] + dk_dK, sums_dK[1] + dv_dK)
        return sums_dK, dot(dscores_QK, k_Kd, [1], [0], dtype)

    of_queries = (q_Qd, dout_Qd.astype(dtype), mean_Q1, *weights)
    parts = 1 if keep_weights else _parts(q_Qd, k_Kd, mask_QK, SCORES_AT_ONCE)
    if parts == 1:
        sums_dK, dq_Qd = of_some(None, of_queries)
    else:
        nothing_dK = jnp.zeros(k_Kd.shape[::-1])
        sums_dK, dq_PRd = lax.scan(of_some, (nothing_dK, nothing_dK), [_split(x, parts) for x in of_queries])
        dq_Qd = _joined(dq_PRd, len(q_Qd))
    dk_Kd, dv_Kd = (transposed_in_memory(x_dK) for x_dK in sums_dK)
    return dq_Qd, dk_Kd, dv_Kd


def _parts(q_Qd: Array, k_Kd: Array, mask_QK: Array | None, at_once: int) -> int:
    """Decides in how many parts the queries are taken, each of at most so many scores.

    A mask of its own for each query is only used on few.
    """
    if mask_QK is not None and len(mask_QK) > 1:
        return 1
    return math.ceil(len(q_Qd) * len(k_Kd) / at_once)


def _split(x_QN: Array, parts: int) -> Array:
    """Splits into [parts, rows, N]; what is added to the last part is zero, and so are its gradients."""
    rows = math.ceil(len(x_QN) / parts)
    return jnp.pad(x_QN, ((0, parts * rows - len(x_QN)), (0, 0))).reshape(parts, rows, -1)


def _joined(x_PRN: Array, length: int) -> Array:
    return x_PRN.reshape(-1, x_PRN.shape[-1])[:length]
