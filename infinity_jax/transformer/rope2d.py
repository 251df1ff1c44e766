"""Rotary positions in two dimensions that line up between scales (docs/spec.md section 4)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.scales import ScaleSchedule


@functools.cache
def rope_table(schedule: ScaleSchedule, head_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Computes cos and sin, each float32 [L, head_size / 2], of the angle of every channel pair of every token.

    The first half of the pairs turns with the token's row, the other half with its column.
    Row i of a scale with h_k rows sits at round(i * H / h_k), halves to even, where H is the
    row count of the preset's last scale: the same place in the picture has the same position on all scales.
    """
    half = head_size // 2
    frequencies = 10000.0 ** (-np.arange(0, half, 2, dtype=np.float64) / half)
    angles = []
    for h, w in schedule.sizes:
        rows = np.round(np.arange(h) * (schedule.position_size[0] / h))
        columns = np.round(np.arange(w) * (schedule.position_size[1] / w))
        by_row = np.broadcast_to((rows[:, None] * frequencies)[:, None, :], (h, w, half // 2))
        by_column = np.broadcast_to((columns[:, None] * frequencies)[None, :, :], (h, w, half // 2))
        angles.append(np.concatenate([by_row, by_column], -1).reshape(h * w, half))
    angles_Ln = np.concatenate(angles)
    return np.cos(angles_Ln).astype(np.float32), np.sin(angles_Ln).astype(np.float32)


def rotate(x_BHLd: jax.Array, cos_Ln: np.ndarray | jax.Array, sin_Ln: np.ndarray | jax.Array) -> jax.Array:
    """Rotates the channel pairs (0, n), (1, n + 1), ... of queries or keys, n = head / 2.

    The release pairs neighbours, (0, 1), (2, 3), ...; a TPU would transpose queries and keys twice each for that. See
    `to_halves`.

    Args:
      x_BHLd: float32 [B, H, L, head].
      cos_Ln, sin_Ln: float32 [L, head / 2] from `rope_table`, or [B, 1, L, head / 2] where pictures differ.
    """
    a, b = jnp.split(x_BHLd, 2, -1)
    return jnp.concatenate([a * cos_Ln - b * sin_Ln, a * sin_Ln + b * cos_Ln], -1)


def to_halves(x: Any) -> Any:
    """Reorders the channels of heads, the last axis, from neighbours as pairs to the order that `rotate` wants.

    Attention is the same if queries and keys both are reordered: their kernels, and the bias of the queries.
    """
    return x.reshape(*x.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(x.shape)


def to_neighbours(x: Any) -> Any:
    """Reorders the last axis back: the inverse of `to_halves`."""
    return x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape)
