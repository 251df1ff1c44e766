"""What spoils a picture: blur, resizing, noise and JPEG, on float [H,W,3] in [0,1] (docs/spec_nsarm.md section 6)."""

import io
import math

import numpy as np
import scipy.signal
from jaxtyping import Float
from PIL import Image

from infinity_jax.tokenizer.resize import area_matrix, bicubic_matrix, bilinear_matrix

Picture = Float[np.ndarray, "_ _ c"]
_LUMA = np.array([0.299, 0.587, 0.114])
MODES = ("area", "bilinear", "bicubic")


def filtered(x_HWc: Picture, kernel: Float[np.ndarray, "n n"]) -> Picture:
    """Correlates each channel with a kernel; at the edges the picture is mirrored."""
    half = len(kernel) // 2
    padded = np.pad(x_HWc, ((half, half), (half, half), (0, 0)), mode="reflect")
    turned = kernel[::-1, ::-1, None]
    return scipy.signal.oaconvolve(padded, turned, mode="valid", axes=(0, 1)).astype(x_HWc.dtype)


def sharpened(x_HWc: Picture, taps: int = 51, weight: float = 0.5, threshold: float = 10 / 255) -> Picture:
    """Sharpens by an unsharp mask, where a picture differs from its blur by more than a threshold."""
    sigma = 0.3 * ((taps - 1) * 0.5 - 1) + 0.8
    line = np.exp(-np.square(np.arange(taps) - taps // 2) / (2 * sigma**2))
    kernel = np.outer(line, line) / line.sum() ** 2
    residual = x_HWc - filtered(x_HWc, kernel)
    mask = filtered((np.abs(residual) > threshold).astype(np.float64), kernel)
    sharp = np.clip(x_HWc + weight * residual, 0, 1)
    return (mask * sharp + (1 - mask) * x_HWc).astype(x_HWc.dtype)


def scaled(x_HWc: Picture, factor: float, mode: str) -> Picture:
    """Resizes a picture by a factor, to whole pixels below; there is no antialiasing, as in the release."""
    sizes = [max(1, math.floor(n * factor)) for n in x_HWc.shape[:2]]
    return _resized(x_HWc, sizes, mode, 1 / factor)


def resized(x_HWc: Picture, size: tuple[int, int], mode: str) -> Picture:
    """Resizes a picture to (height, width), without antialiasing."""
    return _resized(x_HWc, size, mode, None)


def _resized(x_HWc: Picture, size: "tuple[int, int] | list[int]", mode: str, step: float | None) -> Picture:
    # Not the cached ones: nearly every factor is another.
    makes = {"area": area_matrix, "bilinear": bilinear_matrix, "bicubic": bicubic_matrix}
    make, more = makes[mode].__wrapped__, () if mode == "area" else (step,)
    maps = [make(before, after, *more) for before, after in zip(x_HWc.shape[:2], size, strict=True)]
    return np.einsum("hH,HWc,wW->hwc", maps[0], x_HWc, maps[1], optimize=True).astype(x_HWc.dtype)


def gaussian_noise(random: np.random.Generator, x_HWc: Picture, sigma: float, grey: bool) -> Picture:
    """Adds normal noise of `sigma` in [0,1], the same in all channels if `grey`."""
    shape = (*x_HWc.shape[:2], 1 if grey else x_HWc.shape[2])
    return np.clip(x_HWc + sigma * random.standard_normal(shape), 0, 1).astype(x_HWc.dtype)


def poisson_noise(random: np.random.Generator, x_HWc: Picture, scale: float, grey: bool) -> Picture:
    """Adds the noise of counted photons, times `scale`; of the luma, and the same in all channels, if `grey`."""
    counted = np.clip(np.round(x_HWc * 255), 0, 255) / 255
    counted = (counted @ _LUMA)[..., None] if grey else counted
    levels = poisson_levels(counted)
    noise = random.poisson(counted * levels) / levels - counted
    return np.clip(x_HWc + scale * noise, 0, 1).astype(x_HWc.dtype)


def poisson_levels(counted_HWc: Picture) -> int:
    """Counts the photons of white: the power of two from the number of different values on."""
    different = len(np.unique(np.round(counted_HWc * 255)))
    return 2 ** math.ceil(math.log2(max(2, different)))


def jpeg(x_HWc: Picture, quality: float) -> Picture:
    """Sends a picture through a JPEG file."""
    out = io.BytesIO()
    picture = Image.fromarray((np.clip(x_HWc, 0, 1) * 255).round().astype(np.uint8))
    picture.save(out, "JPEG", quality=round(quality))
    with Image.open(out) as read:
        return (np.asarray(read.convert("RGB")) / 255).astype(x_HWc.dtype)
