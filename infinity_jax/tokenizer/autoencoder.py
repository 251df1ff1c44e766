"""The tokenizer's convolutional encoder and decoder (spec section 2)."""

from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from infinity_jax.config import TokenizerConfig
from infinity_jax.runtime.sharding import constrain

GROUPS, EPSILON = 32, 1e-6  # of GroupNorm
_CONV_AXES = (None, None, "conv_in", "conv_out")
_ACTIVATION = ("batch", None, None, None)


def _conv(
    config: TokenizerConfig, features: int, kernel: int = 3, stride: int = 1, padding: Any = "SAME", name=None
):
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=padding,
        dtype=jnp.dtype(config.compute_dtype),
        kernel_init=nn.with_logical_partitioning(nn.initializers.lecun_normal(), _CONV_AXES),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",)),
        name=name,
    )


def _norm_swish(x: jax.Array, name: str) -> jax.Array:
    norm = nn.GroupNorm(
        GROUPS,
        epsilon=EPSILON,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("conv_out",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",)),
        name=name,
    )
    return nn.swish(norm(x))


class ResidualBlock(nn.Module):
    """GroupNorm, swish, 3x3 convolution, twice, around a skip connection.

    float [B,H,W,C] -> float [B,H,W,features]; the skip is a 1x1 convolution where C differs.
    """

    config: TokenizerConfig
    features: int

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B H W features"]:
        x_BHWC = constrain(x_BHWC, *_ACTIVATION)
        h = _conv(self.config, self.features, name="conv1")(_norm_swish(x_BHWC, "norm1"))
        h = _conv(self.config, self.features, name="conv2")(_norm_swish(h, "norm2"))
        if x_BHWC.shape[-1] != self.features:
            x_BHWC = _conv(self.config, self.features, kernel=1, name="shortcut")(x_BHWC)
        return constrain(x_BHWC + h, *_ACTIVATION)


class Encoder(nn.Module):
    """Picture -> features: float32 [B,H,W,3] in [-1,1] -> float32 [B,H/stride,W/stride,bits]."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, image_BHW3: Float[Array, "B H W 3"]) -> Float[Array, "B h w d"]:
        c = self.config
        p = c.pixel_patch
        x = einops.rearrange(image_BHW3, "b (h p) (w q) c -> b h w (p q c)", p=p, q=p)
        x = _conv(c, c.base_width, name="conv_in")(x)
        for level, multiplier in enumerate(c.multipliers):
            for block in range(c.encoder_blocks):
                x = ResidualBlock(c, c.base_width * multiplier, name=f"down_{level}_block_{block}")(x)
            if level < len(c.multipliers) - 1:
                # The release pads bottom and right only.
                x = _conv(
                    c, x.shape[-1], stride=2, padding=((0, 1), (0, 1)), name=f"down_{level}_downsample"
                )(x)
        for block in range(2):
            x = ResidualBlock(c, x.shape[-1], name=f"mid_block_{block}")(x)
        return _conv(c, c.bits, name="conv_out")(_norm_swish(x, "norm_out")).astype(jnp.float32)


class Decoder(nn.Module):
    """Codes -> picture: float32 [B,h,w,bits] -> float32 [B,h*stride,w*stride,3], not yet clipped."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, codes_BHWd: Float[Array, "B h w d"]) -> Float[Array, "B H W 3"]:
        c = self.config
        p = c.pixel_patch
        x = _conv(c, c.base_width * c.multipliers[-1], name="conv_in")(codes_BHWd)
        for block in range(2):
            x = ResidualBlock(c, x.shape[-1], name=f"mid_block_{block}")(x)
        for level in reversed(range(len(c.multipliers))):
            for block in range(c.decoder_blocks):
                x = ResidualBlock(c, c.base_width * c.multipliers[level], name=f"up_{level}_block_{block}")(x)
            if level > 0:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = _conv(c, x.shape[-1], name=f"up_{level}_upsample")(x)
        x = _conv(c, 3 * p * p, name="conv_out")(_norm_swish(x, "norm_out")).astype(jnp.float32)
        return einops.rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=p, q=p)
