"""Attention on TPUs: Pallas splash attention (`jax.experimental.pallas.ops.tpu`), forward and backward.

Scores live in the chip's fast memory alone, and blocks of keys that none of a block of queries sees are skipped.
Nothing of it has run on a TPU: the tests run it in the interpreter and compile it.
"""

import contextlib
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

from infinity_jax.runtime.devices import on_each_device, platform
from infinity_jax.runtime.sharding import traced_layout
from infinity_jax.transformer.layers import LINEAR

LANES = 128  # heads and lengths are multiples of it inside the kernel
LARGEST_BLOCK = 512
# Backward, each block of keys writes its part of the gradient of all queries, so there must be few.
LARGEST_BACKWARD_BLOCK = 2048
Runs = tuple[tuple[int, int], ...]


def attend_splash(
    q_BHQd: jax.Array,
    k_BHKd: jax.Array,
    v_BHKd: jax.Array,
    dtype: str,
    runs: Runs | None = None,
    mask_BK: jax.Array | None = None,
) -> jax.Array:
    """Computes softmax(q k^T) v with softmax scale 1, [B, H, Q, head] of the queries' type.

    On a mesh each device computes its pictures and heads, and with a mask its part of the queries.

    Args:
      q_BHQd, k_BHKd, v_BHKd: float32, or of the type `dtype`.
      dtype: of what the kernel reads and writes; sums are float32. It multiplies "float32" exactly in the
        interpreter alone.
      runs: (number of queries, how many of the first keys they see), one after the other; None: all see all.
      mask_BK: bool, False = not visible. Each picture has something visible.
    """
    Q, K, own_head, result = q_BHQd.shape[2], k_BHKd.shape[2], q_BHQd.shape[3], q_BHQd.dtype
    query_block, key_block = _block(Q), _block(K)
    query_parts = 1 if mask_BK is None else _parts_of_tokens()
    q_BHQd = _padded(q_BHQd.astype(dtype), query_parts * query_block)
    k_BHKd, v_BHKd = (_padded(x.astype(dtype), key_block) for x in (k_BHKd, v_BHKd))

    def of_one_device(q_BHQd: jax.Array, k_BHKd: jax.Array, v_BHKd: jax.Array, *mask_BK) -> jax.Array:
        B, H, queries, head = q_BHQd.shape
        shape = (H, queries, k_BHKd.shape[2])
        kernel = _kernel(shape, runs or ((Q, K),), query_block, key_block, platform() != "tpu")
        seen_Q = _seen(runs or ((Q, K),), queries)
        forward, backward = (
            B * H * _visited(seen_Q, query_block, block)
            for block in (key_block, _backward_block(k_BHKd.shape[2], key_block))
        )
        streamed = 2 * forward * head // query_block * q_BHQd.dtype.itemsize
        # The kernel itself tells no costs. As everywhere, a product counts without what the chip pads its heads with.
        # Forward it has two products; backward it computes one of them again and has four more.
        with costs(2 * 2 * forward * own_head, 5 * 2 * backward * own_head, streamed):
            if not mask_BK:
                return jax.vmap(kernel)(q_BHQd, k_BHKd, v_BHKd)
            return jax.vmap(functools.partial(_masked, kernel))(q_BHQd, k_BHKd, v_BHKd, *mask_BK)

    if mask_BK is None:
        axes = ("batch", "attention_heads", None, None)
        out_BHQd = on_each_device(of_one_device, [axes] * 3, axes)(q_BHQd, k_BHKd, v_BHKd)
    else:
        mask_BK = jnp.pad(mask_BK, ((0, 0), (0, k_BHKd.shape[2] - K)))
        axes, whole = ("batch", "heads", "tokens", None), ("batch", "heads", None, None)
        split = on_each_device(of_one_device, [axes, whole, whole, ("batch", None)], axes)
        out_BHQd = split(q_BHQd, k_BHKd, v_BHKd, mask_BK)
    return out_BHQd[:, :, :Q, :own_head].astype(result)


def _masked(
    kernel: Callable, q_HQd: jax.Array, k_HKd: jax.Array, v_HKd: jax.Array, mask_K: jax.Array
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    return kernel(q_HQd, k_HKd, v_HKd, SegmentIds(jnp.ones(q_HQd.shape[1], "int32"), mask_K.astype("int32")))


@functools.lru_cache(maxsize=64)
def _kernel(
    lengths: tuple[int, int, int], runs: Runs, query_block: int, key_block: int, interpret: bool
) -> Callable:
    """Makes the kernel for [H, Q, head] queries and [H, K, head] keys and values; `lengths` is (H, Q, K), padded."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    heads, queries, keys = lengths
    # A causal mask for queries that stand at the last key that they see: the kernel computes it, and loads none.
    mask = splash.CausalMask((queries, keys))
    mask.q_sequence = _seen(runs, queries) - 1
    blocks = splash.BlockSizes(
        block_q=query_block,
        block_kv=key_block,
        block_q_dkv=query_block,
        block_kv_dkv=_backward_block(keys, key_block),
        block_kv_dkv_compute=key_block,
        use_fused_bwd_kernel=True,  # one kernel for all gradients computes the scores again once, not twice
    )
    with jax.ensure_compile_time_eval():  # kept for other programs, so nothing in it may belong to this one
        return splash.make_splash_mha(
            splash.MultiHeadMask([mask] * heads),
            head_shards=1,
            q_seq_shards=1,
            block_sizes=blocks,
            residual_checkpoint_name=LINEAR,
            interpret=interpret,
        )


def _seen(runs: Runs, queries: int) -> np.ndarray:
    """Counts the first keys that each query sees, int32 [queries]; added queries see what the last one does."""
    numbers, seen = np.array(runs, np.int32).T
    seen_Q = np.repeat(seen, numbers)[:queries]
    return np.pad(seen_Q, (0, queries - len(seen_Q)), mode="edge")


def _visited(seen_Q: np.ndarray, query_block: int, key_block: int) -> int:
    """Counts pairs of query and key in all blocks that the kernel computes for one head."""
    most = seen_Q.reshape(-1, query_block).max(1)
    return int((-(-most // key_block)).sum()) * query_block * key_block


def _backward_block(keys: int, key_block: int) -> int:
    """Chooses the keys of a backward block: as many of the forward's as divide all and are not too many."""
    parts = keys // key_block
    most = max(1, LARGEST_BACKWARD_BLOCK // key_block)
    return key_block * next(n for n in range(min(most, parts), 0, -1) if parts % n == 0)


def _block(length: int) -> int:
    """Chooses the queries or keys of a block: as even parts of the length as there are with at most `LARGEST_BLOCK`."""
    parts = math.ceil(length / LARGEST_BLOCK)
    return math.ceil(length / parts / LANES) * LANES


def _parts_of_tokens() -> int:
    """Counts the parts into which the mesh splits the tokens of a picture."""
    layout = traced_layout.get()
    return 1 if layout is None else math.prod(layout.mesh.shape[axis] for axis in layout.rules.tokens)


def _padded(x_BHLd: jax.Array, multiple: int) -> jax.Array:
    """Adds zeros after the end of the lengths and heads. A TPU's memory has those of the heads anyway."""
    length, head = -x_BHLd.shape[2] % multiple, -x_BHLd.shape[3] % LANES
    return jnp.pad(x_BHLd, ((0, 0), (0, 0), (0, length), (0, head)))


def costs(forward_flops: int, backward_flops: int, streamed_bytes: int) -> contextlib.AbstractContextManager:
    """Notes what splash attention costs on one device at its calls in the compiled program, for `hlo_costs.py`.

    Args:
      forward_flops, backward_flops: of all products in the blocks that each visits.
      streamed_bytes: of the two arrays that it reads again for every block of the others.
    """
    return set_xla_metadata(
        splash_fwd_flops=forward_flops, splash_dkv_flops=backward_flops, splash_streamed_bytes=streamed_bytes
    )
