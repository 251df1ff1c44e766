"""Bitwise self-correction: Random_Flip and re-quantisation (paper section 3.4, Algorithm 2).

In training some bits are flipped before the next scale is computed, and the next scale's labels are
quantised again from what is then left: the transformer learns to mend its own mistakes.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int8, Int32, Key

from infinity_jax.fields import Checked, Range, Share
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import pyramid
from infinity_jax.tokenizer.bsq import BSQ
from infinity_jax.tokenizer.pyramid import Quantizer


@dataclasses.dataclass(frozen=True)
class CorrectionConfig(Checked):
    """How bits are flipped in training.

    Attributes:
      p: largest flip probability; each scale of each picture draws its own from {0, 0.01, ..., p}. 0 turns it off.
      scales: how many of the first scales flip (13 = all).
      requantise: labels come from the residual against the flipped sum (Algorithm 2); False is the paper's
        Table 7, second row: labels against the unflipped sum.
    """

    p: Share = 0.3
    scales: Annotated[int, Range(0, 1000)] = 13
    requantise: bool = True


def draw_flips(
    key: Key[Array, ""], schedule: ScaleSchedule, batch: int, bits: int, config: CorrectionConfig
) -> tuple[Bool[Array, "B _ _ d"], ...]:
    """Which bits are flipped: K arrays bool [B,h_k,w_k,d].

    The probability is drawn for each scale of each picture, in steps of 0.01. The release draws one for each device's
    batch (docs/spec.md section 3); so drawn it does not depend on how many devices there are, and the loss of a whole
    batch varies least (docs/recipe.md).
    """
    flips = []
    for k, (h, w) in enumerate(schedule.sizes):
        key_probability, key_bits = jax.random.split(jax.random.fold_in(key, k))
        steps = round(config.p * 100) if k < config.scales else 0
        probability_B111 = jax.random.randint(key_probability, (batch, 1, 1, 1), 0, steps + 1) / 100.0
        flips.append(jax.random.bernoulli(key_bits, probability_B111, (batch, h, w, bits)))
    return tuple(flips)


def self_correction(
    features_BHWd: Float[Array, "B H W d"],
    flips: tuple[Bool[Array, "B _ _ d"], ...] | None,
    schedule: ScaleSchedule,
    quantizer: Quantizer = BSQ,
    requantise: bool = True,
    patchify: int = 1,
) -> tuple[Float[Array, "B L_minus_1 D"], Int8[Array, "B L D"] | Int32[Array, "B L"]]:
    """Inputs and labels of the transformer from tokenizer features (paper Algorithm 2).

    Args:
      features_BHWd: float32, from the tokenizer's encoder.
      flips: K arrays bool, [B,h_k * patchify,w_k * patchify,d]; all False, or None, is teacher forcing.
      schedule: the transformer's; its last size times `patchify` is (H, W).
      patchify: side of the square of tokens that the transformer reads as one; D = d * patchify^2.
    Returns:
      inputs float32 [B,L-1,D]: the running sum of flipped codes, resized to scales 2..K, row by row;
      labels int8 [B,L,D]: the bits to predict, 1 = positive; or the numbers of codes, int32 [B,L].
    """
    schedule = schedule.times(patchify)

    def sequence(x_BHWd: jax.Array) -> jax.Array:
        if x_BHWd.ndim == 3:  # numbers of codes
            return x_BHWd.reshape(len(x_BHWd), -1)
        x_BhwD = pyramid.to_transformer(x_BHWd, patchify)
        return x_BhwD.reshape(len(x_BhwD), -1, x_BhwD.shape[-1])

    seen_sum = explained_sum = jnp.zeros_like(features_BHWd)
    inputs, labels = [], []
    for k, size in enumerate(schedule.sizes):
        bits = quantizer.choose(pyramid.residual_at_scale(features_BHWd, explained_sum, size, quantizer))
        labels.append(sequence(bits))
        if k + 1 == schedule.n_scales:
            break
        seen = bits if flips is None else bits ^ flips[k]
        seen_sum = quantizer.add(seen_sum, quantizer.look_up(seen), k)
        explained_sum = seen_sum if requantise else quantizer.add(explained_sum, quantizer.look_up(bits), k)
        inputs.append(sequence(quantizer.next_input(seen_sum, schedule.sizes[k + 1])))
    labels_BLD = jnp.concatenate(labels, axis=1)
    if labels_BLD.dtype == jnp.bool_:
        labels_BLD = labels_BLD.astype(jnp.int8)
    channels = features_BHWd.shape[-1] * patchify**2
    empty = jnp.zeros((len(features_BHWd), 0, channels), jnp.float32)
    inputs_BLD = jnp.concatenate(inputs, axis=1) if inputs else empty
    return jax.lax.stop_gradient(inputs_BLD), labels_BLD
