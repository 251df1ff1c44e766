"""One training step of the tokenizer: reconstruct through the bits, and compare (docs/spec.md section 2).

A step with an adversary trains both networks: the tokenizer against the discriminator as it stands, then the
discriminator on the same real and made pictures.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from infinity_jax.errors import UserError
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.training import discriminator
from infinity_jax.training import state as train_state
from infinity_jax.training.discriminator import Discriminator, DiscriminatorConfig
from infinity_jax.training.optim import OptimConfig
from infinity_jax.training.state import TrainState
from infinity_jax.training.step import StepFunction
from infinity_jax.training.tokenizer_losses import quantizer_loss
from infinity_jax.training.training_scales import TrainingScales

FEATURE_NETWORKS = ("efficientnet", "lpips")
# A batch with this key takes part in adversarial training. So the steps before are a program of their own, without it.
ADVERSARIAL = "adversarial"


@dataclasses.dataclass(frozen=True)
class TokenizerLossConfig:
    """The tokenizer's losses and the scales they are taken on.

    Attributes:
      l1: weight of the mean absolute difference of pixels in [-1,1].
      features: weight of the distance in a network's features.
      feature_network: "lpips" (VGG16; the paper's) or "efficientnet", the bundled one.
      vgg_weights, lpips_weights: for "lpips", torch files of VGG16 and of LPIPS' linear heads.
      quantizer: weight of the mean quantiser loss over the scales used.
      entropy_group: bits whose joint entropy is rewarded; 1 is every bit on its own, in O(d).
      scales: "dense", every size up to the last, each left out of a batch with probability `scale_drop`; or "short",
        those of the test schedule, of which half of the batches use only `short_scales` ("reg" in the release).
        The last scale is always used.
      scale_drop: see `scales`.
      short_scales: see `scales`.
      detach_residuals: no gradient through the residuals between scales.
    """

    l1: float = 1.0
    features: float = 0.05
    feature_network: str = "efficientnet"
    vgg_weights: str = ""
    lpips_weights: str = ""
    quantizer: float = 4.0
    entropy_group: int = 1
    scales: str = "dense"
    scale_drop: float = 0.5
    short_scales: int = 7
    detach_residuals: bool = True

    def __post_init__(self):
        if not 0 <= self.scale_drop < 1:
            raise UserError(f"loss.scale_drop {self.scale_drop} must be in [0, 1)")
        if self.scales not in ("dense", "short"):
            raise UserError(f"unknown loss.scales {self.scales!r}; use 'dense' or 'short'")
        for name in ("short_scales", "entropy_group"):
            if getattr(self, name) < 1:
                raise UserError(f"loss.{name} is {getattr(self, name)}; it must be at least 1")
        if self.feature_network not in FEATURE_NETWORKS:
            raise UserError(
                f"unknown loss.feature_network {self.feature_network!r}; use one of {', '.join(FEATURE_NETWORKS)}"
            )


class Adversary(NamedTuple):
    """What the step needs to train a discriminator."""

    config: DiscriminatorConfig
    optimiser: optax.GradientTransformation


FeatureLoss = Callable[[Float[Array, "B H W 3"], Float[Array, "B H W 3"]], Float[Array, ""]]


def make_train_step(
    tokenizer: Tokenizer,
    config: TokenizerLossConfig,
    optim: OptimConfig,
    optimiser: optax.GradientTransformation,
    scales: Mapping[int, TrainingScales],
    feature_loss: FeatureLoss,
    adversary: Adversary | None = None,
) -> StepFunction:
    """Makes the step (state, batch, key) -> (state, metrics), to be jitted; each size of picture becomes one program.

    Args:
      scales: the scales to train on, by the height in pixels of a batch's `image` uint8 [B,H,W,3].
      feature_loss: (pictures, reconstructions) -> the distance in a network's features.
      adversary: takes part in the steps whose batch has the key `ADVERSARIAL`, bool [B] of any value; the state's
        `adversary` is then the discriminator's own state.
    """

    def train_step(state, batch, key):
        image = batch["image"].astype(jnp.float32) / 127.5 - 1.0
        training_scales = scales[image.shape[1]]
        keep_K = training_scales.draw_kept(key, state.step)

        def reconstruct(params):
            made, pyramid = cast(Any, tokenizer.apply)(
                {"params": params}, image, training_scales.schedule, keep_K, config.detach_residuals
            )
            return made, pyramid.projected

        def picture_loss(made):
            parts = {"l1": jnp.mean(jnp.abs(made - image)), "features": feature_loss(image, made)}
            return config.l1 * parts["l1"] + config.features * parts["features"], parts

        def bit_loss(projected):
            quantizer, group = tokenizer.config.quantizer, config.entropy_group
            per_scale = jnp.stack([quantizer_loss(z, quantizer, entropy_group=group) for z in projected])
            mean = jnp.sum(jnp.where(keep_K, per_scale, 0.0)) / jnp.sum(keep_K)
            return config.quantizer * mean, mean

        # By hand instead of one `value_and_grad`: the adaptive weight compares gradients within the network.
        (made, projected), gradient_of = jax.vjp(reconstruct, state.params)
        (of_pictures, parts), to_made = jax.value_and_grad(picture_loss, has_aux=True)(made)
        (of_bits, parts["quantizer"]), to_projected = jax.value_and_grad(bit_loss, has_aux=True)(projected)
        metrics = {"loss": of_pictures + of_bits, **parts, "psnr": _psnr(made, image)}
        opponent = adversary if ADVERSARIAL in batch else None
        if opponent is not None:
            to_fool, of_adversary = _fool(opponent.config, state, made, to_made, gradient_of, to_projected)
            to_made, metrics = to_made + to_fool, metrics | of_adversary
        (grads,) = gradient_of((to_made, to_projected))
        metrics["gradient_norm"] = optax.tree.norm(grads)
        state = train_state.apply_gradients(state, grads, optimiser, optim.ema_decay)
        if opponent is not None:
            state, of_adversary = _train_discriminator(opponent, state, image, made)
            metrics |= of_adversary
        return state, metrics

    return train_step


def _psnr(made_BHW3: jax.Array, image_BHW3: jax.Array) -> jax.Array:
    squared_error = jnp.mean((jnp.clip(made_BHW3, -1, 1) - image_BHW3) ** 2, axis=(1, 2, 3))
    return jnp.mean(10 * jnp.log10(4.0 / jnp.maximum(squared_error, 4e-10)))


def _fool(config: DiscriminatorConfig, state: TrainState, made, to_made, gradient_of, to_projected):
    """Takes the weighted gradient of the adversarial loss in the made pictures, and what to log of it."""
    network = Discriminator(config)

    def loss_of(made):
        return discriminator.made_loss(
            config, cast(Any, network.apply)({"params": state.adversary.params}, made)
        )

    loss, to_fool = jax.value_and_grad(loss_of)(made)
    weight = discriminator.weight_at(config, state.adversary.step)
    if config.adaptive_weight:
        # All but the last kernel's gradient is dead code, which the compiler leaves out.
        of_last = [
            gradient_of((g, jax.tree.map(jnp.zeros_like, to_projected)))[0]["decoder"]["conv_out"]["kernel"]
            for g in (to_made, to_fool)
        ]
        weight = weight * discriminator.adaptive_factor(*of_last)
    return weight * to_fool, {"adversarial": loss, "adversarial_weight": weight}


def _train_discriminator(adversary: Adversary, state: Any, image, made):
    """Takes the discriminator's step: the new state, and what to log."""
    config, network = adversary.config, Discriminator(adversary.config)
    made = jax.lax.stop_gradient(made)

    def loss_of(params):
        logits_real, logits_made = (
            cast(Any, network.apply)({"params": params}, pictures) for pictures in (image, made)
        )
        seen_right = (jnp.mean(logits_real > 0) + jnp.mean(logits_made <= 0)) / 2
        return discriminator.discriminator_loss(config, logits_real, logits_made), seen_right

    own = state.adversary
    (loss, seen_right), grads = jax.value_and_grad(loss_of, has_aux=True)(own.params)
    own = train_state.apply_gradients(own, grads, adversary.optimiser, 0.0)
    return state.replace(adversary=own), {"discriminator": loss, "discriminator_accuracy": seen_right}
