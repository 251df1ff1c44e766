"""Which tokens of a given picture stay when the rest is drawn anew: VAR's zero-shot editing (docs/spec_var.md 5)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from infinity_jax.sampling.masks import WHOLE
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import resize


def outside_box(
    box: tuple[float, float, float, float], size: tuple[int, int], invert: bool = False
) -> Float[np.ndarray, "h w"]:
    """Marks the places of the last scale outside a box, 1 where a token stays.

    Args:
      box: top, left, bottom, right, as shares of the picture.
      size: (height, width) of the last scale.
      invert: keep the box and draw what is around it.
    """
    top, left, bottom, right = box
    inside = np.zeros(size, np.float32)
    rows, columns = (
        (round(a * n), round(b * n)) for a, b, n in ((top, bottom, size[0]), (left, right, size[1]))
    )
    inside[slice(*rows), slice(*columns)] = 1.0
    return inside if invert else 1.0 - inside


def kept_by_scale(mask_hw: Float[Array, "h w"], schedule: ScaleSchedule) -> tuple[Bool[Array, "1 _ _"], ...]:
    """Tells at each scale which tokens stay, from a mask of the last scale that is 1 where one does."""
    kept = []
    for size, tokens in zip(schedule.sizes, schedule.tokens, strict=True):
        share = resize.bilinear(jnp.asarray(mask_hw)[None, ..., None], size)[..., 0]
        kept.append(jnp.ones_like(share, bool) if tokens <= WHOLE else share > 0.5)
    return tuple(kept)
