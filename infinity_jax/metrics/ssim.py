"""SSIM: the structural similarity of two pictures.

Source: Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, IEEE Transactions on
Image Processing 13 (2004), equation 13, with its window (Gaussian, 11x11, sigma 1.5) and constants (0.01, 0.03).
"""

import functools

import numpy as np
from jaxtyping import Float, UInt8

from infinity_jax.errors import UserError

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_CHUNK = 32


def ssim_per_picture(
    image_NHW3: UInt8[np.ndarray, "N H W 3"], reconstruction_NHW3: UInt8[np.ndarray, "N H W 3"]
) -> Float[np.ndarray, " N"]:
    """Computes SSIM of each picture, float64 [N], 1 for equal ones; the mean over the colours of RGB, not of the luma.

    Both are uint8 in 0..255 of one shape. Only windows that lie whole in the picture count, and moments are weighted
    means (not divided by n - 1), as in the paper. Raises UserError for pictures smaller than the window.
    """
    height, width = image_NHW3.shape[1:3]
    if min(height, width) < WINDOW:
        raise UserError(f"SSIM has windows of {WINDOW}x{WINDOW}; pictures of {height}x{width} are too small")
    parts = [
        _ssim(image_NHW3[i : i + _CHUNK].astype(np.float64), reconstruction_NHW3[i : i + _CHUNK])
        for i in range(0, len(image_NHW3), _CHUNK)
    ]
    return np.concatenate([np.zeros(0), *parts])


def _ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    b = b.astype(np.float64)
    mean_a, mean_b = _windowed(a), _windowed(b)
    variance_a, variance_b = _windowed(a * a) - mean_a**2, _windowed(b * b) - mean_b**2
    covariance = _windowed(a * b) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + C1) * (2 * covariance + C2)
    likeness /= (mean_a**2 + mean_b**2 + C1) * (variance_a + variance_b + C2)
    return likeness.mean(axis=(1, 2, 3))


def _windowed(x_NHWC: np.ndarray) -> np.ndarray:
    """Computes weighted means over all windows, [N, H - 10, W - 10, C]."""
    rows, columns = (_gaussian_matrix(length) for length in x_NHWC.shape[1:3])
    return np.einsum("hH,nHWc,wW->nhwc", rows, x_NHWC, columns, optimize=True)


@functools.cache
def _gaussian_matrix(length: int) -> np.ndarray:
    """Returns float64 [length - 10, length]: row i weighs the places i .. i + 10."""
    weights = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / SIGMA) ** 2)
    matrix = np.zeros((length - WINDOW + 1, length))
    for i in range(len(matrix)):
        matrix[i, i : i + WINDOW] = weights / weights.sum()
    return matrix
