"""The one multi-scale residual pyramid: used by the tokenizer, by self-correction and by the sampler.

A picture's features F [B,H,W,d] become K maps of bits. Scale k quantises what the running sum of the
earlier scales' codes has not explained yet (paper eq. 1-3).
"""

from typing import Any, NamedTuple, Protocol

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import resize
from infinity_jax.tokenizer.bsq import BSQ, BinaryQuantizer


class Quantizer(Protocol):
    """What a pyramid leaves open: how residuals become symbols, symbols codes, and codes the running sum.

    Symbols are arrays [B,h,w,...] of bits (`bsq.BinaryQuantizer`) or of numbers of codes (`vq.VectorQuantizer`).
    """

    def project(self, residual: Any) -> Any:
        """Brings residuals [...,d] to where symbols are chosen."""
        ...

    def choose(self, z: Any) -> Any:
        """Chooses symbols of projected residuals [...,d]."""
        ...

    def look_up(self, symbols: Any) -> Any:
        """Finds the codes float32 [...,d] of symbols."""
        ...

    def add(self, running_sum_BHWd: Any, codes_BhwD: Any, scale: int) -> Any:
        """Adds the codes of the scale with number `scale` to the running sum."""
        ...

    def next_input(self, running_sum_BHWd: Any, size: tuple[int, int]) -> Any:
        """Brings the running sum to the size of the next scale: the transformer's input."""
        ...


def residual_at_scale(
    features_BHWd: Float[Array, "B H W d"],
    running_sum_BHWd: Float[Array, "B H W d"],
    size: tuple[int, int],
    quantizer: Quantizer,
) -> Float[Array, "B h w d"]:
    """Brings what is left to explain down to a scale and projects it: the quantiser's input z_k.

    Area interpolation; at the last scale the residual is used as it is.
    """
    return quantizer.project(resize.area(features_BHWd - running_sum_BHWd, size))


class Pyramid(NamedTuple):
    """A picture in symbols.

    Attributes:
      symbols: K arrays: bits bool [B,h_k,w_k,d], or numbers of codes int32 [B,h_k,w_k].
      measured: what the quantiser's loss is computed from: of bits K arrays float32 [B,h_k,w_k,d], the quantiser's
        inputs z_k; of codes the loss itself.
      running_sum_BHWd: float32, the sum of all scales: what the decoder sees.
    """

    symbols: tuple[jax.Array, ...]
    measured: Any
    running_sum_BHWd: jax.Array


def quantise(
    features_BHWd: Float[Array, "B H W d"],
    schedule: ScaleSchedule,
    quantizer: BinaryQuantizer = BSQ,
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
        codes = quantizer.straight_through(z)
        if keep_BK is not None:
            codes = jnp.where(keep_BK[:, k, None, None, None], codes, 0.0)
        running_sum = quantizer.add(running_sum, codes, k)
        bits.append(quantizer.choose(z))
        projected.append(z)
    return Pyramid(tuple(bits), tuple(projected), running_sum)


def sum_of_codes(
    symbols: tuple[jax.Array, ...], size: tuple[int, int], quantizer: Quantizer = BSQ
) -> Float[Array, "B H W d"]:
    """Makes the decoder's input from the symbols of K scales: the sum of all codes, of `size`."""
    running_sum = None
    for k, of_scale in enumerate(symbols):
        codes = quantizer.look_up(of_scale)
        if running_sum is None:
            running_sum = jnp.zeros((len(codes), *size, codes.shape[-1]), jnp.float32)
        running_sum = quantizer.add(running_sum, codes, k)
    assert running_sum is not None, "there are no scales"
    return running_sum


def to_transformer(x_BHWd: Shaped[Array, "B H W d"], patchify: int) -> Shaped[Array, "B h w D"]:
    """Joins tokens of the tokenizer [B,H,W,d] to the transformer's [B,H/p,W/p,d*p*p]; channel = c*p*p + dy*p + dx."""
    return einops.rearrange(x_BHWd, "b (h p) (w q) d -> b h w (d p q)", p=patchify, q=patchify)


def to_tokenizer(x_BhwD: Shaped[Array, "B h w D"], patchify: int) -> Shaped[Array, "B H W d"]:
    """Splits the transformer's tokens: the inverse of `to_transformer`."""
    return einops.rearrange(x_BhwD, "b h w (d p q) -> b (h p) (w q) d", p=patchify, q=patchify)
