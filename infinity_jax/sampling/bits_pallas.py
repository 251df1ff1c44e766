"""One kernel from the last block's output to bits, for TPU (Mosaic) and GPU (Triton).

Per block of tokens: normalise, mix the conditional and the unconditional row, multiply by the difference of the head's
weights of a bit's two classes, compare with random thresholds, write int8. Neither logits nor what the head's linear
map reads reach memory. The norm is part of it because its result is as large as what it reads: a kernel that began
after it would move more bytes. `head_bits.py` has the same in plain jax, and chooses.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pallas_tpu
from jax.experimental.pallas import triton as pallas_triton
from jaxtyping import Array, Float, Int8, UInt32

from infinity_jax.sampling import bits, guidance
from infinity_jax.transformer.kernels.matmul import precision
from infinity_jax.transformer.layers import NORM_EPS

# TPU: both rows of a block of tokens, twice (one is computed while the next is fetched), take at most this much.
TPU_BLOCK_BYTES = 4 * 2**20
TPU_TOKEN_TILE = 32  # rows of an int8 tile
# GPU: tokens and channels of a block. A 32-token block gives a scale of 64x64 tokens a program for nearly each of an
# H100's 132 multiprocessors.
GPU_TOKENS, GPU_CHANNELS, GPU_SMALLEST_DOT = 32, 128, 16
MIXING, TEMPERATURE, LIMIT = range(3)  # of the settings, float32
SCALE, FIRST_TOKEN = range(2)  # of the counters, uint32


def tpu_token_block(tokens: int, width: int) -> int:
    """Chooses the tokens of a block on TPU: all of a small scale, else what fits into `TPU_BLOCK_BYTES`."""
    fitting = TPU_BLOCK_BYTES // (4 * 4 * width) // TPU_TOKEN_TILE * TPU_TOKEN_TILE
    return min(tokens, max(TPU_TOKEN_TILE, fitting))


def draw_on_tpu(
    hidden_BGNC: Float[Array, "B G N C"],
    head: bits.DifferenceHead,
    cfg: Float[Array, ""],
    settings: bits.DrawSettings,
    first_token: UInt32[Array, ""],
    token_block: int | None = None,
    interpret: bool = False,
) -> Int8[Array, "B N d"]:
    """Draws the bits of one scale by the Mosaic kernel.

    Args:
      hidden_BGNC: as in `head_bits.draw_head_bits`, but with a picture's rows side by side.
      head: of as many rows.
      cfg, settings: as in `head_bits.draw_head_bits`.
      first_token: number of the first token, where tokens are split over devices.
      token_block: tokens of a block; None chooses.
      interpret: on a CPU, slowly.
    """
    batch, rows, tokens, width = hidden_BGNC.shape
    block = token_block or tpu_token_block(tokens, width)
    scalars = pl.BlockSpec(memory_space=pallas_tpu.SMEM)
    whole = pl.BlockSpec(memory_space=pallas_tpu.VMEM)
    of_tokens = pl.BlockSpec((1, rows, block, width), lambda picture, i: (picture, 0, i, 0))
    of_picture = pl.BlockSpec((1, rows, 2, width), lambda picture, i: (picture, 0, 0, 0))
    d = len(head.bias_d)
    return pl.pallas_call(
        _tpu_kernel,
        out_shape=jax.ShapeDtypeStruct((batch, tokens, d), jnp.int8),
        grid=(batch, pl.cdiv(tokens, block)),
        in_specs=[scalars, scalars, scalars, of_tokens, of_picture, whole, whole],
        out_specs=pl.BlockSpec((1, block, d), lambda picture, i: (picture, i, 0)),
        compiler_params=pallas_tpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=_cost(hidden_BGNC, head.weight_Cd),
        interpret=interpret,
        name="draw_bits_tpu",
    )(
        *_scalars(cfg, settings, first_token),
        hidden_BGNC, head.modulation_BG2C, head.weight_Cd, head.bias_d[None],
    )  # fmt: skip


def draw_on_gpu(
    hidden_BGNC: Float[Array, "B G N C"],
    head: bits.DifferenceHead,
    cfg: Float[Array, ""],
    settings: bits.DrawSettings,
    first_token: UInt32[Array, ""],
    token_block: int | None = None,
    interpret: bool = False,
) -> Int8[Array, "B N d"]:
    """Draws the bits of one scale by the Triton kernel; arguments as in `draw_on_tpu`, `token_block` a power of two."""
    batch, rows, tokens, width = hidden_BGNC.shape
    block = token_block or (GPU_TOKENS if tokens > GPU_SMALLEST_DOT else GPU_SMALLEST_DOT)
    d = len(head.bias_d)
    return pl.pallas_call(
        functools.partial(_gpu_kernel, rows=rows, token_block=block),
        out_shape=jax.ShapeDtypeStruct((batch, tokens, d), jnp.int8),
        grid=(batch, pl.cdiv(tokens, block)),
        compiler_params=pallas_triton.CompilerParams(num_warps=4, num_stages=3),
        cost_estimate=_cost(hidden_BGNC, head.weight_Cd),
        interpret=interpret,
        name="draw_bits_gpu",
    )(
        *_scalars(cfg, settings, first_token),
        hidden_BGNC.reshape(-1, tokens, width), head.modulation_BG2C.reshape(-1, 2, width), head.weight_Cd, head.bias_d,
    )  # fmt: skip


def _scalars(
    cfg: jax.Array, settings: bits.DrawSettings, first_token: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    numbers = jnp.stack([cfg, settings.tau, bits.dead_zone(settings.tau, settings.top_p)]).astype(jnp.float32)
    counters = jnp.stack([jnp.uint32(settings.scale), first_token.astype(jnp.uint32)])
    return numbers, counters, settings.seeds_B


def _cost(hidden_BGNC: jax.Array, weight_Cd: jax.Array) -> pl.CostEstimate:
    batch, _, tokens, width = hidden_BGNC.shape
    drawn = batch * tokens * weight_Cd.shape[1]
    read = sum(x.size * x.dtype.itemsize for x in (hidden_BGNC, weight_Cd))
    return pl.CostEstimate(flops=2 * drawn * width, bytes_accessed=read + drawn, transcendentals=drawn)


def _mix(settings_ref, rows: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """Mixes what the linear map reads, which is to mix its results; in float32, then rounded."""
    mixed, *unconditional = rows
    if unconditional:
        mixed = guidance.mix(mixed, unconditional[0], settings_ref[MIXING])
    return mixed.astype(dtype)


def _product(x, weight) -> jax.Array:
    chosen = precision(weight.dtype.name)
    return jnp.dot(x, weight, precision=chosen, preferred_element_type=jnp.float32)


def _drawn(difference, settings_ref, counters_ref, seed, token_in_part) -> jax.Array:
    """Draws int8 bits of a block [tokens, bits]; `token_in_part` is the block's first, among those of this device."""
    token, bit = (jax.lax.broadcasted_iota(jnp.int32, difference.shape, axis) for axis in (0, 1))
    first = counters_ref[FIRST_TOKEN].astype(jnp.int32) + token_in_part
    threshold = bits.random_thresholds(
        seed, counters_ref[SCALE], (token + first).astype(jnp.uint32), bit.astype(jnp.uint32),
        settings_ref[TEMPERATURE], settings_ref[LIMIT],
    )  # fmt: skip
    return (difference > threshold).astype(jnp.int32).astype(jnp.int8)


def _tpu_kernel(
    settings_ref, counters_ref, seeds_ref, hidden_ref, modulation_ref, weight_ref, bias_ref, bits_ref
):
    picture, block = pl.program_id(0), pl.program_id(1)
    weight, modulation = weight_ref[...], modulation_ref[0]
    centred = hidden_ref[0].astype(jnp.float32)
    centred -= centred.mean(-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + NORM_EPS)
    rows = tuple(normed * (1 + modulation[:, :1]) + modulation[:, 1:])
    difference = bias_ref[...] + _product(_mix(settings_ref, rows, weight.dtype), weight)
    token = block * bits_ref.shape[1]
    bits_ref[0] = _drawn(difference, settings_ref, counters_ref, seeds_ref[picture], token)


def _gpu_kernel(
    settings_ref, counters_ref, seeds_ref, hidden_ref, modulation_ref, weight_ref, bias_ref, bits_ref,
    *, rows: int, token_block: int,
):  # fmt: skip
    picture, block = pl.program_id(0), pl.program_id(1)
    rows_of_picture = [picture * rows + g for g in range(rows)]
    _, tokens, width = hidden_ref.shape
    d = bias_ref.shape[0]
    # Triton's arrays have powers of two as sizes; what is beyond the end is masked.
    bit_block = max(GPU_SMALLEST_DOT, pl.next_power_of_2(d))
    token = block * token_block
    of_block, columns = pl.ds(token, token_block), pl.ds(0, bit_block)
    token_exists = (token + jnp.arange(token_block) < tokens)[:, None]
    bit_exists = (jnp.arange(bit_block) < d)[None]
    load = functools.partial(pallas_triton.load, other=0)

    def of_channels(i):
        start = i * GPU_CHANNELS
        return pl.ds(start, GPU_CHANNELS), start + jnp.arange(GPU_CHANNELS) < width

    def sum_over_channels(term: Callable, shape: tuple[int, ...]) -> jax.Array:
        blocks = pl.cdiv(width, GPU_CHANNELS)
        return jax.lax.fori_loop(0, blocks, lambda i, total: total + term(i), jnp.zeros(shape, jnp.float32))

    def read(row, i):
        channels, exist = of_channels(i)
        mask = token_exists & exist[None]
        return load(hidden_ref.at[row, of_block, channels], mask=mask).astype(jnp.float32)

    def mean_and_factor(row):
        mean = sum_over_channels(lambda i: read(row, i).sum(1), (token_block,))[:, None] / width

        def squares(i):
            return jnp.where(of_channels(i)[1], jnp.square(read(row, i) - mean), 0.0).sum(1)

        return mean, jax.lax.rsqrt(sum_over_channels(squares, (token_block,))[:, None] / width + NORM_EPS)

    def modulated(row, mean, factor, i):
        channels, exist = of_channels(i)
        by, shift = (load(modulation_ref.at[row, pl.ds(k, 1), channels], mask=exist[None]) for k in (0, 1))
        return (read(row, i) - mean) * factor * (1 + by) + shift

    norms = [(row, *mean_and_factor(row)) for row in rows_of_picture]

    def product(i):
        channels, exist = of_channels(i)
        weight = load(weight_ref.at[channels, columns], mask=exist[:, None] & bit_exists)
        mixed = _mix(settings_ref, [modulated(*norm, i) for norm in norms], weight.dtype)
        return _product(mixed, weight)

    difference = sum_over_channels(product, (token_block, bit_block))
    difference += load(bias_ref.at[columns], mask=bit_exists[0])[None]
    drawn = _drawn(difference, settings_ref, counters_ref, seeds_ref[picture], token)
    pallas_triton.store(bits_ref.at[picture, of_block, columns], drawn, mask=token_exists & bit_exists)
