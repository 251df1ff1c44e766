"""How well the tokenizer gives a picture back: peak signal-to-noise ratio."""

import numpy as np
from jaxtyping import Float, UInt8

# Equal pictures have an infinite ratio; the cap keeps a mean over pictures finite.
HIGHEST_PSNR = 100.0


def psnr_per_picture(
    image_NHW3: UInt8[np.ndarray, "N H W 3"], reconstruction_NHW3: UInt8[np.ndarray, "N H W 3"]
) -> Float[np.ndarray, " N"]:
    """Computes PSNR of each picture in dB, float64 [N], at most HIGHEST_PSNR: 10 log10(255^2 / mean squared error).

    Both arrays are uint8 in 0..255 of one shape; the error is averaged over pixels and colours.
    Raises TypeError for another dtype and ValueError for unequal shapes.
    """
    if image_NHW3.dtype != np.uint8 or reconstruction_NHW3.dtype != np.uint8:
        raise TypeError(f"PSNR takes uint8 pictures, got {image_NHW3.dtype} and {reconstruction_NHW3.dtype}")
    if image_NHW3.shape != reconstruction_NHW3.shape or image_NHW3.ndim != 4:
        raise ValueError(
            f"PSNR takes two arrays [N, H, W, 3], got {image_NHW3.shape}, {reconstruction_NHW3.shape}"
        )
    error = np.square(image_NHW3.astype(np.float64) - reconstruction_NHW3).mean(axis=(1, 2, 3))
    return 10.0 * np.log10(255.0**2 / np.maximum(error, 255.0**2 / 10 ** (HIGHEST_PSNR / 10)))


def mean_psnr(
    image_NHW3: UInt8[np.ndarray, "N H W 3"], reconstruction_NHW3: UInt8[np.ndarray, "N H W 3"]
) -> float:
    """Averages `psnr_per_picture` over pictures, in dB (not the PSNR of the mean error)."""
    return float(psnr_per_picture(image_NHW3, reconstruction_NHW3).mean())
