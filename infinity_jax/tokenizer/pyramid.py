"""The one multi-scale residual pyramid: used by the tokenizer, by self-correction and by the sampler.

A picture's features F [B,H,W,d] become K maps of bits. Scale k quantises what the running sum of the
earlier scales' codes has not explained yet (paper eq. 1-3).
"""

from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import bsq, resize


def residual_at_scale(
    features_BHWd: Float[Array, "B H W d"],
    running_sum_BHWd: Float[Array, "B H W d"],
    size: tuple[int, int],
    quantizer: str,
) -> Float[Array, "B h w d"]:
    """Brings what is left to explain down to a scale and projects it: the quantiser's input z_k.

    Its sign gives the scale's bits. Area interpolation; at the last scale the residual is used as it is.
    """
    return bsq.project(resize.area(features_BHWd - running_sum_BHWd, size), quantizer)


def add_codes(
    running_sum_BHWd: Float[Array, "B H W d"], codes_BhwD: Float[Array, "B h w d"]
) -> Float[Array, "B H W d"]:
    """Adds one scale's codes to the running sum, resized bilinearly to the sum's size (paper eq. 1)."""
    height, width = running_sum_BHWd.shape[1:3]
    return running_sum_BHWd + resize.bilinear(codes_BhwD, (height, width))


def next_input(running_sum_BHWd: Float[Array, "B H W d"], size: tuple[int, int]) -> Float[Array, "B h w d"]:
    """Resizes the running sum bilinearly to the next scale: the transformer's input (docs/spec.md section 2)."""
    return resize.bilinear(running_sum_BHWd, size)


class Pyramid(NamedTuple):
    """A picture in bits.

    Attributes:
      bits: K arrays bool [B,h_k,w_k,d].
      projected: K arrays float32 [B,h_k,w_k,d], the quantiser's inputs z_k (for its loss).
      running_sum_BHWd: float32, the sum of all scales: what the decoder sees.
    """

    bits: tuple[jax.Array, ...]
    projected: tuple[jax.Array, ...]
    running_sum_BHWd: jax.Array


def quantise(
    features_BHWd: Float[Array, "B H W d"],
    schedule: ScaleSchedule,
    quantizer: str = "bsq",
    keep_BK: Bool[Array, "B K"] | None = None,
    detach_residuals: bool = True,
) -> Pyramid:
    """Quantises float32 features [B,H,W,d] scale by scale, with straight-through gradients.

    Args:
      schedule: its last size must be (H, W).
      keep_BK: scales to use of each picture; a dropped one adds nothing (its bits are returned all the same).
      detach_residuals: no gradient from one scale's residual into the earlier scales' codes (docs/spec.md section 2).
    """
    running_sum = jnp.zeros_like(features_BHWd)
    bits, projected = [], []
    for k, size in enumerate(schedule.sizes):
        explained = jax.lax.stop_gradient(running_sum) if detach_residuals else running_sum
        z = residual_at_scale(features_BHWd, explained, size, quantizer)
        codes = bsq.straight_through(z, quantizer)
        if keep_BK is not None:
            codes = jnp.where(keep_BK[:, k, None, None, None], codes, 0.0)
        running_sum = add_codes(running_sum, codes)
        bits.append(bsq.to_bits(z))
        projected.append(z)
    return Pyramid(tuple(bits), tuple(projected), running_sum)


def sum_of_codes(
    bits: tuple[jax.Array, ...], size: tuple[int, int], quantizer: str = "bsq"
) -> Float[Array, "B H W d"]:
    """Makes the decoder's input from K arrays of bits [B,h_k,w_k,d]: the sum of all codes resized to `size`."""
    batch, d = bits[0].shape[0], bits[0].shape[-1]
    running_sum = jnp.zeros((batch, *size, d), jnp.float32)
    for bits_BhwD in bits:
        running_sum = add_codes(running_sum, bsq.to_codes(bits_BhwD, quantizer))
    return running_sum


def to_transformer(x_BHWd: Shaped[Array, "B H W d"], patchify: int) -> Shaped[Array, "B h w D"]:
    """Joins tokens of the tokenizer [B,H,W,d] to the transformer's [B,H/p,W/p,d*p*p]; channel = c*p*p + dy*p + dx."""
    return einops.rearrange(x_BHWd, "b (h p) (w q) d -> b h w (d p q)", p=patchify, q=patchify)


def to_tokenizer(x_BhwD: Shaped[Array, "B h w D"], patchify: int) -> Shaped[Array, "B H W d"]:
    """Splits the transformer's tokens: the inverse of `to_transformer`."""
    return einops.rearrange(x_BhwD, "b h w (d p q) -> b (h p) (w q) d", p=patchify, q=patchify)
