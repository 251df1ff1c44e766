"""Area, bilinear and bicubic resizing of token maps, as small constant matrices, one per axis.

All match the published models: area = adaptive average pooling (any ratio), bilinear and bicubic = half-pixel
centres without antialiasing, also when they shrink (docs/spec.md section 2, docs/spec_var.md section 2).
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@functools.cache
def area_matrix(n_in: int, n_out: int) -> np.ndarray:
    """Makes float32 [n_out, n_in]: row i averages the inputs floor(i n_in / n_out) .. ceil((i + 1) n_in / n_out)."""
    matrix = np.zeros((n_out, n_in), np.float32)
    for i in range(n_out):
        start, stop = i * n_in // n_out, -(-(i + 1) * n_in // n_out)
        matrix[i, start:stop] = 1.0 / (stop - start)
    return matrix


@functools.cache
def bilinear_matrix(n_in: int, n_out: int, step: float | None = None) -> np.ndarray:
    """Makes float32 [n_out, n_in]: row i mixes the inputs around (i + 0.5) step - 0.5, clamped at the edges.

    `step` is n_in / n_out, or what else is given.
    """
    matrix = np.zeros((n_out, n_in), np.float32)
    for i in range(n_out):
        centre = max(_centre(i, n_in, n_out, step), 0.0)
        low = min(math.floor(centre), n_in - 1)
        weight = centre - low
        matrix[i, low] += 1.0 - weight
        matrix[i, min(low + 1, n_in - 1)] += weight
    return matrix


@functools.cache
def bicubic_matrix(n_in: int, n_out: int, step: float | None = None) -> np.ndarray:
    """Makes float32 [n_out, n_in]: row i mixes four inputs around (i + 0.5) step - 0.5, clamped at the edges.

    `step` as in `bilinear_matrix`. Cubic convolution with a = -0.75 (Keys, 1981), as in PyTorch; `jax.image.resize` has
    a = -0.5 and other edges.
    """
    a = -0.75
    matrix = np.zeros((n_out, n_in))
    for i in range(n_out):
        centre = _centre(i, n_in, n_out, step)
        low = math.floor(centre)
        for tap in range(low - 1, low + 3):
            x = abs(centre - tap)
            near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[i, min(max(tap, 0), n_in - 1)] += near if x <= 1 else far
    return matrix.astype(np.float32)


def _centre(i: int, n_in: int, n_out: int, step: float | None) -> float:
    return ((i + 0.5) * n_in / n_out if step is None else (i + 0.5) * step) - 0.5


def _resize(x_BHWC: jax.Array, size: tuple[int, int], matrix: Callable[[int, int], np.ndarray]) -> jax.Array:
    height, width = x_BHWC.shape[1:3]
    if (height, width) == size:
        return x_BHWC
    rows, columns = matrix(height, size[0]), matrix(width, size[1])
    # One contraction over both axes: token maps are small, and HIGHEST keeps float32 exact on accelerators.
    precision = jax.lax.Precision.HIGHEST
    x_BhWC = jnp.einsum("hH,bHWc->bhWc", rows, x_BHWC, precision=precision)
    return jnp.einsum("wW,bhWc->bhwc", columns, x_BhWC, precision=precision)


def area(x_BHWC: Float[Array, "B H W C"], size: tuple[int, int]) -> Float[Array, "B h w C"]:
    """Averages float [B,H,W,C] over areas to size (h, w) (adaptive average pooling)."""
    return _resize(x_BHWC, size, area_matrix)


def bilinear(x_BHWC: Float[Array, "B H W C"], size: tuple[int, int]) -> Float[Array, "B h w C"]:
    """Interpolates float [B,H,W,C] bilinearly to size (h, w), align_corners false, no antialiasing."""
    return _resize(x_BHWC, size, bilinear_matrix)


def bicubic(x_BHWC: Float[Array, "B H W C"], size: tuple[int, int]) -> Float[Array, "B h w C"]:
    """Interpolates float [B,H,W,C] by cubic convolution to size (h, w), align_corners false, no antialiasing."""
    return _resize(x_BHWC, size, bicubic_matrix)
