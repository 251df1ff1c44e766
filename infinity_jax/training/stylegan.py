"""The discriminator of StyleGAN2, residual and unconditional, as BSQ-ViT trains with (docs/spec_bsq_vit.md section 3).

Karras et al., arXiv 1912.04958. Every weight is drawn from N(0, 1) and divided by the root of its inputs where it is
used, so that one learning rate suits all layers.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from infinity_jax.errors import UserError
from infinity_jax.runtime.sharding import constrain

SMALLEST = 4  # pixels of a side that the last layers see
_GROUP = 4  # pictures that the deviation within a batch is taken over
_CONV_AXES = (None, None, "conv_in", "conv_out")
# What a map is smoothed with before every second pixel of it is taken.
_FILTER = np.outer((1, 3, 3, 1), (1, 3, 3, 1)) / 64


def _activated(x: jax.Array) -> jax.Array:
    return nn.leaky_relu(x, 0.2) * math.sqrt(2)


def _convolved(
    x_BHWC: jax.Array, kernel: jax.Array, padding: int, stride: int = 1, groups: int = 1
) -> jax.Array:
    return lax.conv_general_dilated(
        x_BHWC,
        kernel,
        (stride, stride),
        ((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def smoothed(x_BHWC: Float[Array, "B H W C"], padding: int, stride: int = 1) -> Float[Array, "B h w C"]:
    """Smooths every channel by the filter 1 3 3 1, with so many zeros around it, and takes every `stride`-th pixel."""
    channels = x_BHWC.shape[-1]
    kernel = jnp.tile(jnp.asarray(_FILTER, x_BHWC.dtype)[:, :, None, None], (1, 1, 1, channels))
    return _convolved(x_BHWC, kernel, padding, stride, groups=channels)


class Scaled(nn.Module):
    """A convolution or, of a vector, a linear map, whose weights are scaled where they are used.

    Attributes:
      features: channels that come out.
      kernel: side of a convolution's kernel; 0 is a linear map.
      halved: the map is smoothed, and the convolution takes every second place.
      bias: whether there is one.
    """

    features: int
    kernel: int = 0
    halved: bool = False
    bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B *n C"]) -> Float[Array, "B *m features"]:
        shape = (*[self.kernel] * (2 if self.kernel else 0), x.shape[-1], self.features)
        init = nn.with_logical_partitioning(nn.initializers.normal(1.0), _CONV_AXES[-len(shape) :])
        parameter: Any = self.param
        weight = parameter("kernel", init, shape) / math.sqrt(math.prod(shape[:-1]))
        if not self.kernel:
            x = x @ weight
        elif self.halved and self.kernel == 1:  # the pixels that are left out need no smoothing
            x = _convolved(smoothed(x, 1, stride=2), weight, 0)
        elif self.halved:
            x = _convolved(smoothed(x, 2), weight, 0, stride=2)
        else:
            x = _convolved(x, weight, self.kernel // 2)
        if self.bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",))
            x = x + parameter("bias", zeros, (self.features,))
        return x


class Block(nn.Module):
    """Halves a map by two convolutions beside a skip: float32 [B,H,W,C] -> [B,H/2,W/2,features]."""

    features: int

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B h w features"]:
        x_BHWC = constrain(x_BHWC, "batch", None, None, None)
        skip = Scaled(self.features, 1, halved=True, bias=False, name="skip")(x_BHWC)
        x = _activated(Scaled(x_BHWC.shape[-1], 3, name="conv0")(x_BHWC))
        x = _activated(Scaled(self.features, 3, halved=True, name="conv1")(x))
        return (x + skip) * math.sqrt(0.5)


def deviation(x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B H W 1"]:
    """Tells each picture how much the pictures of its group differ, as one more channel.

    Raises UserError for a batch that is no whole number of groups of 4.
    """
    batch, group = len(x_BHWC), min(_GROUP, len(x_BHWC))
    if batch % group:
        raise UserError(
            f"discriminator.architecture 'stylegan' compares pictures in groups of {_GROUP}, and {batch} are none; use "
            f"a batch size that is a multiple of {_GROUP}"
        )
    groups = x_BHWC.reshape(group, batch // group, *x_BHWC.shape[1:])
    of_group = jnp.sqrt(groups.var(0) + 1e-8).mean((1, 2, 3))
    return jnp.broadcast_to(jnp.tile(of_group, group)[:, None, None, None], (*x_BHWC.shape[:3], 1))


class StyleGAN(nn.Module):
    """How real each picture looks: float32 [B,S,S,3] in [-1,1] -> logits float32 [B].

    Attributes:
      channel_base, channel_max: see `DiscriminatorConfig`.
    Raises UserError for a side that is no power of two from 8 on.
    """

    channel_base: int
    channel_max: int

    @nn.compact
    def __call__(self, image_BHW3: Float[Array, "B H W 3"]) -> Float[Array, " B"]:
        side = image_BHW3.shape[1]
        if image_BHW3.shape[2] != side or side <= SMALLEST or side & (side - 1):
            raise UserError(
                f"discriminator.architecture 'stylegan' halves pictures down to {SMALLEST}x{SMALLEST}, which "
                f"{side}x{image_BHW3.shape[2]} does not reach; use a side that is a power of two, or 'patches'"
            )
        if self.channel_base < side:
            raise UserError(
                f"discriminator.channel_base {self.channel_base} leaves no channel at a side of {side} pixels; use more"
            )
        x = _activated(Scaled(self._channels(side), 1, name="from_rgb")(image_BHW3))
        while side > SMALLEST:
            x = Block(self._channels(side // 2), name=f"block_{side}")(x)
            side //= 2
        x = jnp.concatenate([x, deviation(x)], -1)
        x = _activated(Scaled(self._channels(SMALLEST), 3, name="conv")(x))
        x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # channel first, as the release flattens
        x = _activated(Scaled(self._channels(SMALLEST), name="fc")(x))
        return Scaled(1, name="out")(x)[:, 0]

    def _channels(self, side: int) -> int:
        return min(self.channel_base // side, self.channel_max)
