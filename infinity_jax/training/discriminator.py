"""The adversary of the tokenizer's training: a PatchGAN discriminator, and the losses (docs/spec.md section 2).

Isola et al., arXiv 1611.07004; GroupNorm stands where they have BatchNorm, so that a picture's judgement depends
neither on its batch nor on how a mesh splits it, and there are no running statistics. `stylegan.py` has the other
network, BSQ-ViT's.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from infinity_jax.errors import UserError
from infinity_jax.fields import Checked, OneOf, Positive, Range, Weight, WholeNumber
from infinity_jax.runtime.sharding import constrain
from infinity_jax.training.stylegan import StyleGAN

LOSSES = ("hinge", "non-saturating")
PATCHES, STYLEGAN = "patches", "stylegan"
# Of LeCAM-style regularisation: mean logits up to this size cost nothing (docs/spec.md section 2).
LECAM_FREE = 0.1
_CONV_AXES = (None, None, "conv_in", "conv_out")


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig(Checked):
    """The adversary and its weight in the tokenizer's loss.

    Attributes:
      architecture: "patches" judges each patch of a picture; "stylegan" whole pictures, see `stylegan.StyleGAN`.
      base_width: of "patches": channels of the first layer; each later one has twice as many, up to 8 times.
      layers: of "patches": layers that halve the picture; more of them see larger patches.
      channel_base, channel_max: of "stylegan": at a side of r pixels there are channel_base / r channels, at most
        channel_max.
      loss: "hinge" or "non-saturating".
      weight: of the adversarial loss beside the others.
      adaptive_weight: multiply it by the size of the other losses' gradient over its own, both in the decoder's last
        kernel (Esser et al., arXiv 2012.09841, eq. 7).
      start_step: steps before the first with an adversary; in a config file also text, like "10%" of the run.
      ramp_steps: steps over which its weight then grows linearly to `weight`; likewise.
      lecam: weight of the LeCAM-style regularisation, relu(|mean logit| - 0.1)^2 on real and on made pictures.
      learning_rate_factor: the discriminator's rate over the tokenizer's.
      r1: weight of the R1 penalty, half the mean over real pictures of the squared gradient of their logits
        (Mescheder et al., arXiv 1801.04406, eq. 9); BSQ-ViT's release logs it and trains nothing by it.
      r1_every: steps of which the last has the penalty, times their number.
    """

    architecture: Annotated[str, OneOf((PATCHES, STYLEGAN))] = PATCHES
    base_width: Annotated[int, Range(32, 2**12)] = 128
    layers: Annotated[int, Range(1, 10)] = 3
    loss: Annotated[str, OneOf(LOSSES)] = "hinge"
    weight: Weight = 0.3
    adaptive_weight: bool = False
    start_step: WholeNumber = 0
    ramp_steps: WholeNumber = 0
    lecam: Weight = 0.05
    learning_rate_factor: Positive = 2.0
    channel_base: Annotated[int, Range(32, 2**20)] = 2**15
    channel_max: Annotated[int, Range(4, 2**14)] = 512
    r1: Weight = 0.0
    r1_every: Annotated[int, Range(1, 10**6)] = 16

    def __post_init__(self):
        super().__post_init__()
        if self.base_width % 32:
            raise UserError(
                f"discriminator.base_width {self.base_width} must be a multiple of 32, the groups of GroupNorm"
            )


def network_of(config: DiscriminatorConfig) -> nn.Module:
    """Makes the network: float32 [B,H,W,3] in [-1,1] -> logits float32, [B,h,w] of patches or [B] of pictures."""
    if config.architecture == STYLEGAN:
        return StyleGAN(config.channel_base, config.channel_max)
    return Discriminator(config)


class Discriminator(nn.Module):
    """How real each patch looks: float32 [B,H,W,3] in [-1,1] -> logits float32 [B,h,w].

    Raises UserError for pictures that are too small for so many layers.
    """

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, image_BHW3: Float[Array, "B H W 3"]) -> Float[Array, "B h w"]:
        layers, width = self.config.layers, self.config.base_width
        smallest = 4 * 2**layers
        if min(image_BHW3.shape[1:3]) < smallest:
            raise UserError(
                f"pictures of {image_BHW3.shape[1]}x{image_BHW3.shape[2]} pixels are too small for "
                f"discriminator.layers {layers}, which needs {smallest}; use fewer layers"
            )
        x = nn.leaky_relu(_conv(width, 2, "conv_0")(image_BHW3), 0.2)
        for layer in range(1, layers + 1):
            stride = 2 if layer < layers else 1
            x = _conv(width * min(2**layer, 8), stride, f"conv_{layer}", use_bias=False)(x)
            x = nn.leaky_relu(nn.GroupNorm(32, name=f"norm_{layer}")(x), 0.2)
            x = constrain(x, "batch", None, None, None)
        return _conv(1, 1, "conv_out")(x)[..., 0]


def _conv(features: int, stride: int, name: str, use_bias: bool = True) -> nn.Conv:
    init = nn.initializers.normal(0.02)
    return nn.Conv(
        features,
        (4, 4),
        (stride, stride),
        padding=((1, 1), (1, 1)),
        use_bias=use_bias,
        kernel_init=nn.with_logical_partitioning(init, _CONV_AXES) if features > 1 else init,
        name=name,
    )


def made_loss(config: DiscriminatorConfig, logits_made: Float[Array, "B *n"]) -> Float[Array, ""]:
    """What the tokenizer pays for made pictures that look made."""
    return -jnp.mean(logits_made if config.loss == "hinge" else jax.nn.log_sigmoid(logits_made))


def discriminator_loss(
    config: DiscriminatorConfig, logits_real: Float[Array, "B *n"], logits_made: Float[Array, "B *n"]
) -> Float[Array, ""]:
    """What the discriminator pays for real and made pictures that it takes for the other kind."""
    if config.loss == "hinge":
        of_kinds = jnp.mean(jax.nn.relu(1.0 - logits_real)) + jnp.mean(jax.nn.relu(1.0 + logits_made))
    else:
        of_kinds = -jnp.mean(jax.nn.log_sigmoid(logits_real)) - jnp.mean(jax.nn.log_sigmoid(-logits_made))
    beyond = [jax.nn.relu(jnp.abs(jnp.mean(x)) - LECAM_FREE) ** 2 for x in (logits_real, logits_made)]
    return 0.5 * of_kinds + config.lecam * (beyond[0] + beyond[1])


def squared_slope(
    judged: Callable[[Float[Array, "B H W 3"]], Float[Array, "B *n"]], image_BHW3: Float[Array, "B H W 3"]
) -> Float[Array, ""]:
    """Takes the mean over pictures of the squared gradient of their logits' sum: what R1 punishes on real ones."""
    slope_BHW3 = jax.grad(lambda pictures: judged(pictures).sum())(image_BHW3)
    return jnp.square(slope_BHW3).sum((1, 2, 3)).mean()


def r1_due(config: DiscriminatorConfig, step: jax.Array) -> Bool[Array, ""]:
    """Tells whether the discriminator's own step has the penalty: the last of every `r1_every`."""
    return (step + 1) % config.r1_every == 0


def weight_at(config: DiscriminatorConfig, step: jax.Array) -> Float[Array, ""]:
    """The adversarial loss's weight at the discriminator's own step: the ramp, then `weight`."""
    return config.weight * jnp.minimum(1.0, (step + 1) / max(1, config.ramp_steps)).astype(jnp.float32)


def adaptive_factor(other_gradient: jax.Array, own_gradient: jax.Array) -> Float[Array, ""]:
    """Size of the other losses' gradient over the adversarial one's, at most 10^4 (arXiv 2012.09841, eq. 7)."""
    size, own = jnp.linalg.norm(other_gradient.ravel()), jnp.linalg.norm(own_gradient.ravel())
    return jax.lax.stop_gradient(jnp.clip(size / (own + 1e-4), 0.0, 1e4))
