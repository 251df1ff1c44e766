"""Blur kernels, float64: Gaussians of several shapes, and the ideal low-pass filter (docs/spec_nsarm.md section 6)."""

import numpy as np
import scipy.special
from jaxtyping import Float

Kernel = Float[np.ndarray, "_ _"]
LARGEST = 21
GAUSSIAN, GENERALISED, PLATEAU = "gaussian", "generalised", "plateau"


def blur(
    size: int, sigmas: tuple[float, float], rotation: float = 0.0, shape: str = GAUSSIAN, beta: float = 1.0
) -> Kernel:
    """Makes a kernel of `size` x `size` that sums to 1.

    Args:
      sigmas: along the first and the second axis, in pixels.
      rotation: of the axes, in radians.
      shape: "gaussian"; "generalised", a Gaussian of the distance to the power of 2 beta; "plateau", with a flat top.
    """
    axis = np.arange(size) - size // 2
    place = np.stack(np.meshgrid(axis, axis), -1).astype(np.float64)
    cosine, sine = np.cos(rotation), np.sin(rotation)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    inverse = np.linalg.inv(turn @ np.diag(np.square(sigmas)) @ turn.T)
    distance = np.einsum("yxi,ij,yxj->yx", place, inverse, place)
    if shape == PLATEAU:
        kernel = 1 / (distance**beta + 1)
    else:
        kernel = np.exp(-0.5 * distance ** (beta if shape == GENERALISED else 1.0))
    return kernel / kernel.sum()


def sinc(cutoff: float, size: int) -> Kernel:
    """Makes the circular low-pass filter of a cut-off in radians a pixel, whose ringing it is used for."""
    axis = np.arange(size) - (size - 1) / 2
    radius = np.hypot(axis[:, None], axis[None])
    safe = np.where(radius == 0, 1.0, radius)
    kernel = np.where(
        radius == 0,
        cutoff**2 / (4 * np.pi),
        cutoff * scipy.special.j1(cutoff * safe) / (2 * np.pi * safe),
    )
    return kernel / kernel.sum()


# Kinds of blur, whether both axes are alike, and how often they are drawn.
_KINDS = ((GAUSSIAN, True), (GAUSSIAN, False), (GENERALISED, True), (GENERALISED, False))
_KINDS = (*_KINDS, (PLATEAU, True), (PLATEAU, False))
_ODDS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
_BETAS = {GENERALISED: (0.5, 4.0), PLATEAU: (1.0, 2.0), GAUSSIAN: (1.0, 1.0)}
_SINC_SHARE, _SMALL = 0.1, 13


def drawn(random: np.random.Generator, sigma: tuple[float, float], largest: int = LARGEST) -> Kernel:
    """Draws a blur: in a tenth of the cases the low-pass filter, else a Gaussian of some shape.

    Args:
      sigma: the least and the greatest, in pixels.
      largest: side of the largest kernel, odd, at least 7.
    """
    size = int(random.choice(np.arange(7, largest + 1, 2)))
    if random.random() < _SINC_SHARE:
        return sinc(random.uniform(np.pi / (3 if size < _SMALL else 5), np.pi), size)
    shape, is_round = _KINDS[random.choice(len(_KINDS), p=_ODDS)]
    first = random.uniform(*sigma)
    second, rotation = (first, 0.0) if is_round else (random.uniform(*sigma), random.uniform(-np.pi, np.pi))
    low, high = _BETAS[shape]
    # As often flatter than a Gaussian as more pointed.
    beta = random.uniform(low, 1.0) if random.random() < 0.5 else random.uniform(1.0, high)
    return blur(size, (first, second), rotation, shape, beta)


def drawn_sinc(random: np.random.Generator, share: float, largest: int = LARGEST) -> Kernel:
    """Draws the last low-pass filter, in so many of the cases; else what leaves a picture as it is."""
    size = int(random.choice(np.arange(7, largest + 1, 2)))
    if random.random() < share:
        return sinc(random.uniform(np.pi / 3, np.pi), size)
    return np.pad(np.ones((1, 1)), size // 2)
