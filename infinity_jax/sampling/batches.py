"""How many pictures are drawn at once: few sizes, since each is compiled for itself, and no more than memory holds."""

import math

import jax.numpy as jnp

from infinity_jax.errors import UserError
from infinity_jax.runtime.devices import GIB, memory_bytes
from infinity_jax.runtime.memory import device_memory
from infinity_jax.runtime.sharding import Layout
from infinity_jax.sampling.config import SamplerConfig
from infinity_jax.scales import ScaleSchedule

SIZES = (1, 4, 16)
_MOST_TOKENS = 8192


def largest(schedule: ScaleSchedule, layout: Layout | None) -> int:
    """Returns the pictures of a batch of a long list: a power of two, fewer where a picture has many tokens.

    On a mesh at least as many as devices share a batch, and a multiple of that.
    """
    rows = SIZES[-1]
    while rows > 1 and rows * schedule.length > _MOST_TOKENS:
        rows //= 2
    return rows if layout is None else math.lcm(rows, layout.batch_parts)


def fitting(pictures: int, most: int, layout: Layout | None) -> int:
    """Returns the smallest batch for so many pictures, of `SIZES` or the pictures themselves; at most `most`."""
    size = next((size for size in SIZES if size >= pictures), pictures)
    return min(most, size if layout is None else math.lcm(size, layout.batch_parts))


def check(batch: int, config: SamplerConfig, layout: Layout | None) -> None:
    """Raises UserError for a batch that is no number of pictures, or that certainly exceeds a device's memory."""
    if batch < 1:
        raise UserError(f"batch {batch} must be at least 1")
    if layout is not None:
        layout.batch(batch)
    needed = least_bytes(config)
    available = memory_bytes() if layout is None else device_memory(layout) * layout.batch_parts
    if batch * needed > available:
        raise UserError(
            f"batch {batch}: pictures of this size take at least {needed / 2**20:.3g} MiB each while they are drawn, "
            f"and {available / GIB:.3g} GiB are there; use a batch of at most {available // needed}, better a "
            "quarter of that"
        )


def least_bytes(config: SamplerConfig) -> int:
    """Counts bytes that one picture takes at least: cached keys and values, and the last scale's residual stream."""
    model, schedule, tokenizer = config.model, config.schedule, config.tokenizer
    cached = (
        2 * model.layers * (schedule.length - schedule.tokens[-1]) * jnp.dtype(model.compute_dtype).itemsize
    )
    stream = schedule.tokens[-1] * jnp.dtype("float32").itemsize
    pixels = schedule.tokens[-1] * tokenizer.transformer_stride**2
    return config.rows * model.width * (cached + stream) + 3 * pixels
