"""The release's JPEG, without a file: its table of luma is transposed, nothing is coded (docs/spec_nsarm.md 6)."""

import einops
import numpy as np
from jaxtyping import Float

_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_TO_RGB = np.array([[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]])
_SHIFT = np.array([0.0, 128.0, 128.0])
# The standard's tables K.1 and K.2 (ITU-T T.81).
_LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    np.float64,
)
_CHROMA = np.full((8, 8), 99.0)
_CHROMA[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
_NUMBERS = np.arange(8)
# Rows are frequencies, orthonormal.
_COSINES = np.cos((2 * _NUMBERS[None] + 1) * _NUMBERS[:, None] * np.pi / 16)
_COSINES *= 0.5 * np.where(_NUMBERS[:, None] == 0, 0.5**0.5, 1.0)


def jpeg(x_HW3: Float[np.ndarray, "H W 3"], quality: float) -> Float[np.ndarray, "H W 3"]:
    """Quantises a picture in [0,1] as JPEG does, with half the colours' resolution; black is put around it to 16."""
    height, width = x_HW3.shape[:2]
    padded = np.pad(x_HW3, ((0, -height % 16), (0, -width % 16), (0, 0)))
    ycc = padded.astype(np.float64) * 255 @ _TO_YCC.T + _SHIFT
    factor = (5000 / quality if quality < 50 else 200 - 2 * quality) / 100
    luma = _quantised(ycc[..., 0], _LUMA.T * factor)
    colours = [
        _quantised(einops.reduce(ycc[..., c], "(h p) (w q) -> h w", "mean", p=2, q=2), _CHROMA * factor)
        .repeat(2, 0)
        .repeat(2, 1)
        for c in (1, 2)
    ]
    rgb = (np.stack([luma, *colours], -1) - _SHIFT) @ _TO_RGB.T
    return (np.clip(rgb, 0, 255) / 255)[:height, :width].astype(x_HW3.dtype)


def _quantised(plane_HW: np.ndarray, table: np.ndarray) -> np.ndarray:
    blocks = einops.rearrange(plane_HW - 128, "(h p) (w q) -> h w p q", p=8, q=8)
    frequencies = np.round(_COSINES @ blocks @ _COSINES.T / table) * table
    return einops.rearrange(_COSINES.T @ frequencies @ _COSINES, "h w p q -> (h p) (w q)") + 128
