"""Masks of edits: which tokens of each scale a mask keeps, and how what it keeps is put back."""

from typing import Any

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float
from PIL import Image, ImageFilter

from infinity_jax.scales import ScaleSchedule

# Scales of so few tokens say what a picture is as a whole: a masked picture keeps them.
WHOLE = 3
# A token is drawn anew where more of it than this is white in the mask.
_TOUCHED = 0.01


def white(mask: Image.Image) -> Bool[np.ndarray, "h w"]:
    """Tells where a mask is white, and its picture drawn anew."""
    return np.asarray(mask.convert("L")) > 127


def kept_by_scale(
    white_HW: Bool[np.ndarray, "H W"] | None, schedule: ScaleSchedule, strength: float, feather: int = 0
) -> list[np.ndarray]:
    """Tells which tokens [h,w] of each scale stay: those of the first scales, and those outside the mask.

    At the last scale a token that the mask touches is drawn. A coarser one stays where more than half of its last
    scale's tokens do; where a mask is, so do all of scales that have at most 3 tokens.

    Args:
      white_HW: True where a picture is drawn anew; None: everywhere.
      strength: see `EditRequest`.
      feather: see `EditRequest`; with it these are shares, float32, without it bool.
    """
    first = schedule.n_scales - round(strength * schedule.n_scales)
    if white_HW is not None:
        touched = _resized(white_HW.astype(np.float32), schedule.last)
        drawn = touched > _TOUCHED
        stays = 1 - (drawn if drawn.any() else touched > 0).astype(np.float32)
        if feather:  # by the distance to what is drawn, along rows and columns
            distance: Any = scipy.ndimage.distance_transform_cdt(stays, "taxicab")
            stays = np.minimum(distance / (feather + 1), 1).astype(np.float32)
    kind, kept = (np.float32 if feather else bool), []
    for k, (size, tokens) in enumerate(zip(schedule.sizes, schedule.tokens, strict=True)):
        if k < first:
            kept.append(np.ones(size, kind))
        elif white_HW is None:
            kept.append(np.zeros(size, kind))
        elif tokens <= WHOLE:
            kept.append(np.ones(size, kind))
        else:
            share = _resized(stays, size)
            kept.append(share if feather else share > 0.5)
    return kept


def _resized(x: Float[np.ndarray, "H W"], size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """Takes means over areas."""
    return np.asarray(Image.fromarray(x, "F").resize((size[1], size[0]), Image.Resampling.BOX))


def paste(drawn: Image.Image, picture: Image.Image, mask: Image.Image) -> Image.Image:
    """Puts what was drawn into the white part of a picture, at the picture's size, blended within the mask's edge.

    Outside the mask the picture stays as it is, to the pixel.
    """
    drawn = drawn.resize(picture.size, Image.Resampling.LANCZOS)
    redrawn = white(mask)
    edge = Image.fromarray(redrawn.astype(np.uint8) * 255)
    # Blurred it is a half at the edge; that much is taken away, so that nothing outside changes.
    blurred = edge.filter(ImageFilter.GaussianBlur(max(1.0, min(picture.size) / 128)))
    inside = blurred.point([max(0, 2 * value - 255) for value in range(256)])
    alpha = np.where(redrawn, np.asarray(inside), 0).astype(np.uint8)
    return Image.composite(drawn, picture.convert("RGB"), Image.fromarray(alpha))
