"""NSARM's two losses: the first scales' residuals; bits of the later scales, on what was predicted (spec section 5)."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import pyramid, resize
from infinity_jax.tokenizer.bsq import BSQ, BinaryQuantizer
from infinity_jax.training.transformer_losses import bit_loss

Maps = tuple[Float[Array, "B _ _ d"], ...]
# Of each scale; None where it is not flipped.
Flips = tuple[Bool[Array, "B _ _ d"] | None, ...]


def residuals(
    features_BHWd: Float[Array, "B H W d"],
    schedule: ScaleSchedule,
    count: int,
    quantizer: BinaryQuantizer = BSQ,
) -> Maps:
    """Computes what the first scales of a picture quantise, not normalised: the targets of stage 1.

    Args:
      features_BHWd: float32, of the tokenizer's encoder.
      schedule: the tokenizer's.
      count: of scales.
    """
    running_sum, targets = jnp.zeros_like(features_BHWd), []
    for k, size in enumerate(schedule.sizes[:count]):
        residual = resize.area(features_BHWd - running_sum, size)
        targets.append(residual)
        codes = quantizer.look_up(quantizer.choose(quantizer.project(residual)))
        running_sum = quantizer.add(running_sum, codes, k)
    return tuple(targets)


def residual_loss(predicted: Maps, targets: Maps) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Adds up the mean squared errors of the scales: stage 1.

    Returns:
      float32 scalar, and metrics: `squared_error_per_scale` float32 [g], `bit_accuracy` the share of the given bits
      that are those of the targets.
    """
    errors = jnp.stack([jnp.square(a - b).mean() for a, b in zip(predicted, targets, strict=True)])
    right = [jnp.mean((a > 0) == (b > 0)) for a, b in zip(predicted, targets, strict=True)]
    metrics = {"squared_error_per_scale": errors, "bit_accuracy": jnp.stack(right).mean()}
    return errors.sum(), jax.lax.stop_gradient(metrics)


def given_correction(
    features_BHWd: Float[Array, "B H W d"],
    predicted: Maps,
    flips: Flips | None,
    schedule: ScaleSchedule,
    quantizer: BinaryQuantizer = BSQ,
    patchify: int = 1,
) -> tuple[Float[Array, "B L_minus_1 D"], Bool[Array, "B L D"]]:
    """Makes the transformer's inputs and labels where the first scales are predicted (the "modified residual").

    The running sum begins with the predicted scales' codes, so that the labels of the later ones mend what is wrong
    with them, as self-correction does with flips. Gradients reach the predictions straight through their own codes, and
    through those of the later scales, which quantise what they leave.

    Args:
      features_BHWd: float32, of the true picture.
      predicted: residuals of the first scales.
      flips: of the first scales, at the tokenizer's resolution; those that are flipped pass no gradient on.
      schedule: the transformer's.
    Returns:
      inputs float32 [B,L-1,D], labels bool [B,L,D]; those of the predicted scales are their own bits.
    """

    def sequence(x_BHWd: jax.Array) -> jax.Array:
        x_BhwD = pyramid.to_transformer(x_BHWd, patchify)
        return x_BhwD.reshape(len(x_BhwD), -1, x_BhwD.shape[-1])

    schedule = schedule.times(patchify)
    running_sum, inputs, labels = jnp.zeros_like(features_BHWd), [], []
    for k, size in enumerate(schedule.sizes):
        if k < len(predicted):
            z = quantizer.project(predicted[k])
        else:
            z = pyramid.residual_at_scale(features_BHWd, running_sum, size, quantizer)
        bits = quantizer.choose(z)
        labels.append(sequence(bits))
        if k + 1 == schedule.n_scales:
            break
        flip = None if flips is None or k >= len(flips) else flips[k]
        codes = quantizer.straight_through(z) if flip is None else quantizer.look_up(bits ^ flip)
        running_sum = quantizer.add(running_sum, codes, k)
        inputs.append(sequence(quantizer.next_input(running_sum, schedule.sizes[k + 1])))
    return jnp.concatenate(inputs, 1), jnp.concatenate(labels, 1)


def later_bit_loss(
    logits_BLD2: Float[Array, "B L D 2"],
    bits_BLD: Bool[Array, "B L D"] | Int[Array, "B L D"],
    schedule: ScaleSchedule,
    given_scales: int,
    weights: str = "uniform",
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """Takes the cross-entropy of the scales after the given ones, as `transformer_losses.bit_loss`: stage 2."""
    first = schedule.offsets[given_scales]
    later = ScaleSchedule(schedule.sizes[given_scales:], schedule.last)
    labels = bits_BLD[:, first:].astype(jnp.int8)
    return bit_loss(logits_BLD2[:, first:], labels, later, weights, label_smoothing)
