"""Colours of an upscaled picture, brought back to those of the low-quality one (docs/spec_nsarm.md section 4)."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

_EPS = 1e-5
_LEVELS = 5
_KERNEL = np.array([1.0, 2.0, 1.0]) / 4


def corrected(
    drawn_HW3: UInt8[np.ndarray, "H W 3"], low_hw3: UInt8[np.ndarray, "h w 3"], how: str
) -> UInt8[np.ndarray, "H W 3"]:
    """Corrects an upscaled picture's colours.

    Args:
      low_hw3: the low-quality picture, which is enlarged bicubically.
      how: a name of `config.COLOURS`; those joined by "+" are done in that order.
    """
    if how == "none":
        return drawn_HW3
    height, width = drawn_HW3.shape[:2]
    low = np.asarray(Image.fromarray(low_hw3).resize((width, height), Image.Resampling.BICUBIC))
    for name in how.split("+"):
        step = {"adain": adain, "wavelet": wavelet}[name]
        made = step(drawn_HW3.astype(np.float32) / 255, low.astype(np.float32) / 255)
        drawn_HW3 = (np.clip(made, 0, 1) * 255).astype(np.uint8)
    return drawn_HW3


def adain(
    drawn_HW3: Float[np.ndarray, "H W 3"], low_HW3: Float[np.ndarray, "H W 3"]
) -> Float[np.ndarray, "H W 3"]:
    """Gives each channel of a picture in [0,1] the mean and standard deviation of the low-quality one's."""

    def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return x.mean((0, 1)), np.sqrt(x.var((0, 1), ddof=1) + _EPS)

    (mean, spread), (low_mean, low_spread) = moments(drawn_HW3), moments(low_HW3)
    return (drawn_HW3 - mean) / spread * low_spread + low_mean


def wavelet(
    drawn_HW3: Float[np.ndarray, "H W 3"], low_HW3: Float[np.ndarray, "H W 3"]
) -> Float[np.ndarray, "H W 3"]:
    """Puts the low-quality picture's low frequencies in the place of the drawn one's."""
    return drawn_HW3 - _low_pass(drawn_HW3) + _low_pass(low_HW3)


def _low_pass(x_HW3: np.ndarray) -> np.ndarray:
    """Blurs five times by a small kernel whose taps lie 1, 2, 4, 8 and 16 places apart; edges are repeated."""
    for level in range(_LEVELS):
        apart = 2**level
        for axis in (0, 1):
            padding = [(apart, apart) if axis == i else (0, 0) for i in range(x_HW3.ndim)]
            padded, count = np.pad(x_HW3, padding, mode="edge"), x_HW3.shape[axis]
            shifted = (np.take(padded, np.arange(count) + i * apart, axis) for i in range(3))
            x_HW3 = np.sum([tap * x for tap, x in zip(_KERNEL, shifted, strict=True)], axis=0)
    return x_HW3
