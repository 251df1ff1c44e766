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
# Of a picture's settings, float32.
MIXING, TEMPERATURE, LIMIT = range(NUMBERS := 3)
SCALE, FIRST_TOKEN = range(2)  # of the counters, uint32


def tpu_token_block(tokens: int, width: int) -> int:
    """Chooses the tokens of a block on TPU: all of a small scale, else what fits into `TPU_BLOCK_BYTES`."""
    fitting = TPU_BLOCK_BYTES // (4 * 4 * width) // TPU_TOKEN_TILE * TPU_TOKEN_TILE
    return min(tokens, max(TPU_TOKEN_TILE, fitting))


def draw_on_tpu(
    hidden_BGNC: Float[Array, "B G N C"],
    head: bits.LinearHead,
    cfg_B: Float[Array, " B"],
    settings: bits.DrawSettings,
    first_token: UInt32[Array, ""],
    token_block: int | None = None,
    interpret: bool = False,
) -> Int8[Array, "B N d"]:
    """Draws the bits of one scale by the Mosaic kernel.

    Args:
      hidden_BGNC: as in `head_bits.draw_head_bits`, but with a picture's rows side by side.
      head: of as many rows.
      cfg_B, settings: as in `head_bits.draw_head_bits`.
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
    d = len(head.bias_n)
    return pl.pallas_call(
        _tpu_kernel,
        out_shape=jax.ShapeDtypeStruct((batch, tokens, d), jnp.int8),
        grid=(batch, pl.cdiv(tokens, block)),
        in_specs=[scalars, scalars, scalars, of_tokens, of_picture, whole, whole],
        out_specs=pl.BlockSpec((1, block, d), lambda picture, i: (picture, i, 0)),
        compiler_params=pallas_tpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=_cost(hidden_BGNC, head.weight_Cn),
        interpret=interpret,
        name="draw_bits_tpu",
    )(
        *_scalars(cfg_B, settings, first_token),
        hidden_BGNC, head.modulation_BG2C, head.weight_Cn, head.bias_n[None],
    )  # fmt: skip


def draw_on_gpu(
    hidden_BGNC: Float[Array, "B G N C"],
    head: bits.LinearHead,
    cfg_B: Float[Array, " B"],
    settings: bits.DrawSettings,
    first_token: UInt32[Array, ""],
    token_block: int | None = None,
    interpret: bool = False,
) -> Int8[Array, "B N d"]:
    """Draws the bits of one scale by the Triton kernel; arguments as in `draw_on_tpu`, `token_block` a power of two."""
    batch, rows, tokens, width = hidden_BGNC.shape
    block = token_block or (GPU_TOKENS if tokens > GPU_SMALLEST_DOT else GPU_SMALLEST_DOT)
    # Triton's blocks are powers of two, and none may reach beyond an array's end. Of published models this copies
    # only scales of fewer tokens than a block has, and the head's weights where bits are no power of two.
    d = len(head.bias_n)
    channels = pl.cdiv(width, GPU_SMALLEST_DOT) * GPU_SMALLEST_DOT
    columns = max(GPU_SMALLEST_DOT, pl.next_power_of_2(d))
    hidden = _padded(hidden_BGNC.reshape(-1, tokens, width), (None, max(tokens, block), channels))
    modulation = _padded(head.modulation_BG2C.reshape(-1, 2, width), (None, None, channels))
    drawn = pl.pallas_call(
        functools.partial(_gpu_kernel, rows=rows, width=width, token_block=block),
        out_shape=jax.ShapeDtypeStruct((batch, hidden.shape[1], columns), jnp.int8),
        grid=(batch, pl.cdiv(tokens, block)),
        compiler_params=pallas_triton.CompilerParams(num_warps=4, num_stages=3),
        cost_estimate=_cost(hidden_BGNC, head.weight_Cn),
        interpret=interpret,
        name="draw_bits_gpu",
    )(
        *_scalars(cfg_B, settings, first_token),
        hidden, modulation, _padded(head.weight_Cn, (channels, columns)), _padded(head.bias_n, (columns,)),
    )  # fmt: skip
    return drawn[:, :tokens, :d]


def _padded(x: jax.Array, sizes: Sequence[int | None]) -> jax.Array:
    """Appends zeros to each axis up to its size (None keeps it); copies nothing where none are needed."""
    more = [(0, 0 if size is None else size - own) for own, size in zip(x.shape, sizes, strict=True)]
    return jnp.pad(x, more) if any(after for _, after in more) else x


def _scalars(
    cfg_B: jax.Array, settings: bits.DrawSettings, first_token: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns what kernels read as scalars: three numbers a picture, in one row; counters; seeds."""
    limit_B = bits.dead_zone(settings.tau_B, settings.top_p_B)
    numbers = jnp.stack([cfg_B, settings.tau_B, limit_B], 1).reshape(-1).astype(jnp.float32)
    counters = jnp.stack([jnp.uint32(settings.scale), first_token.astype(jnp.uint32)])
    return numbers, counters, settings.seeds_B


def _cost(hidden_BGNC: jax.Array, weight_Cn: jax.Array) -> pl.CostEstimate:
    batch, _, tokens, width = hidden_BGNC.shape
    drawn = batch * tokens * weight_Cn.shape[1]
    read = sum(x.size * x.dtype.itemsize for x in (hidden_BGNC, weight_Cn))
    return pl.CostEstimate(flops=2 * drawn * width, bytes_accessed=read + drawn, transcendentals=drawn)


def _mix(settings_ref, picture, rows: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """Mixes what the linear map reads, which is to mix its results; in float32, then rounded."""
    mixed, *unconditional = rows
    if unconditional:
        mixed = guidance.mix(mixed, unconditional[0], settings_ref[NUMBERS * picture + MIXING])
    return mixed.astype(dtype)


def _product(x, weight) -> jax.Array:
    chosen = precision(weight.dtype.name)
    return jnp.dot(x, weight, precision=chosen, preferred_element_type=jnp.float32)


def _drawn(difference, settings_ref, counters_ref, seeds_ref, picture, token_in_part) -> jax.Array:
    """Draws int8 bits of a block [tokens, bits]; `token_in_part` is the block's first, among those of this device."""
    token, bit = (jax.lax.broadcasted_iota(jnp.int32, difference.shape, axis) for axis in (0, 1))
    first = counters_ref[FIRST_TOKEN].astype(jnp.int32) + token_in_part
    threshold = bits.random_thresholds(
        seeds_ref[picture], counters_ref[SCALE], (token + first).astype(jnp.uint32), bit.astype(jnp.uint32),
        settings_ref[NUMBERS * picture + TEMPERATURE], settings_ref[NUMBERS * picture + LIMIT],
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
    difference = bias_ref[...] + _product(_mix(settings_ref, picture, rows, weight.dtype), weight)
    token = block * bits_ref.shape[1]
    bits_ref[0] = _drawn(difference, settings_ref, counters_ref, seeds_ref, picture, token)


def _gpu_kernel(
    settings_ref, counters_ref, seeds_ref, hidden_ref, modulation_ref, weight_ref, bias_ref, bits_ref,
    *, rows: int, width: int, token_block: int,
):  # fmt: skip
    """Draws a block's bits; `width` is the channels that are not padding."""
    picture, block = pl.program_id(0), pl.program_id(1)
    rows_of_picture = [picture * rows + g for g in range(rows)]
    _, tokens, channels = hidden_ref.shape
    token = block * token_block
    if tokens % token_block:
        # The last block ends with the last token; what it shares with the block before gets the same bits again.
        token = jnp.minimum(token, tokens - token_block)
    of_block = pl.ds(token, token_block)

    whole_blocks = channels // GPU_CHANNELS

    def sum_over_channels(term: Callable, shape: tuple[int, ...]) -> jax.Array:
        """Sums what `term(channels)` gives for each block of channels."""

        def add(i, total):
            return total + term(pl.ds(i * GPU_CHANNELS, GPU_CHANNELS))

        total = jnp.zeros(shape, jnp.float32)
        if whole_blocks:
            total = jax.lax.fori_loop(0, whole_blocks, add, total)
        # The rest is as many smaller powers of two as it takes.
        start, size = whole_blocks * GPU_CHANNELS, GPU_CHANNELS
        while start < channels:
            size //= 2
            if channels & size:
                total, start = total + term(pl.ds(start, size)), start + size
        return total

    def read(row, channels):
        return hidden_ref[row, of_block, channels].astype(jnp.float32)

    def mean_and_factor(row):
        mean = sum_over_channels(lambda channels: read(row, channels).sum(1), (token_block,))[:, None] / width

        def squares(channels):
            square = jnp.square(read(row, channels) - mean)
            if hidden_ref.shape[2] > width:
                square = jnp.where(channels.start + jnp.arange(channels.size) < width, square, 0.0)
            return square.sum(1)

        return mean, jax.lax.rsqrt(sum_over_channels(squares, (token_block,))[:, None] / width + NORM_EPS)

    def modulated(row, mean, factor, channels):
        by, shift = (modulation_ref[row, pl.ds(k, 1), channels] for k in (0, 1))
        return (read(row, channels) - mean) * factor * (1 + by) + shift

    norms = [(row, *mean_and_factor(row)) for row in rows_of_picture]

    def product(channels):
        weight = weight_ref[channels, :]
        each = [modulated(*norm, channels) for norm in norms]
        mixed = _mix(settings_ref, picture, each, weight.dtype)
        return _product(mixed, weight)

    difference = sum_over_channels(product, (token_block, bias_ref.shape[0])) + bias_ref[...][None]
    bits_ref[picture, of_block, :] = _drawn(difference, settings_ref, counters_ref, seeds_ref, picture, token)
