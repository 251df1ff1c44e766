"""Rotary positions in two dimensions that line up between scales (docs/spec.md section 4)."""

import functools

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
    """Rotates the channel pairs (0, 1), (2, 3), ... of queries or keys.

    Args:
      x_BHLd: float32 [B, H, L, head].
      cos_Ln, sin_Ln: float32 [L, head / 2] from `rope_table`, or [B, 1, L, head / 2] where pictures differ.
    """
    pairs = x_BHLd.reshape(*x_BHLd.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([a * cos_Ln - b * sin_Ln, a * sin_Ln + b * cos_Ln], -1)
    return turned.reshape(x_BHLd.shape)
