"""One training step of the tokenizer: reconstruct through the bits, and compare (spec section 2)."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from infinity_jax import random, train_state
from infinity_jax.errors import UserError
from infinity_jax.optim import OptimConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer.bsq_losses import quantizer_loss
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.tokenizer.perceptual import efficientnet_feature_loss
from infinity_jax.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class TokenizerLossConfig:
    """Weights of the tokenizer's losses.

    Attributes:
      l1: mean absolute difference of pixels in [-1,1].
      features: distance in EfficientNet features.
      quantizer: mean quantiser loss over the scales used.
      scale_drop: each scale but the last is left out of a batch with this probability.
      detach_residuals: no gradient through the residuals between scales.
    """

    l1: float = 1.0
    features: float = 0.05
    quantizer: float = 4.0
    scale_drop: float = 0.5
    detach_residuals: bool = True

    def __post_init__(self):
        if not 0 <= self.scale_drop < 1:
            raise UserError(f"loss.scale_drop {self.scale_drop} must be in [0, 1)")


def draw_kept_scales(
    key: Key[Array, ""], step: Int[Array, ""], n_scales: int, scale_drop: float
) -> Bool[Array, " K"]:
    """Which scales a batch uses: bool [K], the last always."""
    keep_K = jax.random.bernoulli(random.stream(key, "scale drop", step), 1.0 - scale_drop, (n_scales,))
    return keep_K.at[-1].set(True)


def losses(
    tokenizer: Tokenizer,
    config: TokenizerLossConfig,
    params: PyTree,
    feature_net: PyTree,
    image_BHW3: Float[Array, "B H W 3"],
    schedule: ScaleSchedule,
    keep_K: Bool[Array, " K"],
) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
    """The tokenizer's total loss and its parts, float32 scalars.

    Args:
      feature_net: variables of the EfficientNet whose features are compared.
      image_BHW3: float32 in [-1,1].
      keep_K: scales to use.
    """
    image, quantised = cast(Any, tokenizer.apply)(
        {"params": params}, image_BHW3, schedule, keep_K, config.detach_residuals
    )
    per_scale = jnp.stack([quantizer_loss(z, tokenizer.config.quantizer) for z in quantised.projected])
    parts = {
        "l1": jnp.mean(jnp.abs(image - image_BHW3)),
        "features": efficientnet_feature_loss(feature_net, image_BHW3, image),
        "quantizer": jnp.sum(jnp.where(keep_K, per_scale, 0.0)) / jnp.sum(keep_K),
    }
    total = (
        config.l1 * parts["l1"] + config.features * parts["features"] + config.quantizer * parts["quantizer"]
    )
    squared_error = jnp.mean((jnp.clip(image, -1, 1) - image_BHW3) ** 2, axis=(1, 2, 3))
    parts["psnr"] = jnp.mean(10 * jnp.log10(4.0 / jnp.maximum(squared_error, 4e-10)))
    return total, parts


def make_train_step(
    tokenizer: Tokenizer,
    config: TokenizerLossConfig,
    optim: OptimConfig,
    optimiser: optax.GradientTransformation,
    schedule: ScaleSchedule,
    feature_net: PyTree,
) -> Callable[[TrainState, dict[str, jax.Array], Key[Array, ""]], tuple[TrainState, dict[str, jax.Array]]]:
    """The step (state, batch, key) -> (state, metrics), to be jitted.

    The batch holds `image` uint8 [B,H,W,3]; `feature_net` holds the EfficientNet's variables.
    """

    def train_step(state, batch, key):
        image_BHW3 = batch["image"].astype(jnp.float32) / 127.5 - 1.0
        keep_K = draw_kept_scales(key, state.step, schedule.n_scales, config.scale_drop)

        def loss_fn(params):
            return losses(tokenizer, config, params, feature_net, image_BHW3, schedule, keep_K)

        (loss, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        metrics = {"loss": loss, **parts, "gradient_norm": optax.global_norm(grads)}
        return train_state.apply_gradients(state, grads, optimiser, optim.ema_decay), metrics

    return train_step
