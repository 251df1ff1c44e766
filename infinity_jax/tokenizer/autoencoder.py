"""The tokenizer's convolutional encoder and decoder (docs/spec.md section 2)."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from infinity_jax.config import TokenizerConfig
from infinity_jax.runtime.sharding import constrain
from infinity_jax.tokenizer.convolution import Arithmetic, Sides, before_doubling, convolve, convolve_doubled
from infinity_jax.tokenizer.group_norm import EPSILON, GROUPS, group_norm_swish

_CONV_AXES = (None, None, "conv_in", "conv_out")
_ACTIVATION = ("batch", None, None, None)


def conv(
    arithmetic: Arithmetic,
    features: int,
    kernel: int = 3,
    stride: int = 1,
    padding: Sides | None = None,
    doubled: bool = False,
    name: str | None = None,
) -> nn.Conv:
    """Makes a convolution with bias, float [B,H,W,C] -> [B,h,w,features], whose sides are zeros around the map.

    Args:
      padding: zeros before and after, along both sides; None keeps the size.
      doubled: the map is doubled first, each value to two by two.
    """
    sides = padding or (kernel // 2, kernel // 2)

    def operation(x: jax.Array, kernel: jax.Array, strides: Sides, *_: Any, **__: Any) -> jax.Array:
        if doubled:
            return convolve_doubled(x, before_doubling(kernel), arithmetic, (1, 1))
        return convolve(x, kernel, arithmetic, sides, sides, strides)

    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        dtype=jnp.dtype(arithmetic.maps),
        kernel_init=nn.with_logical_partitioning(nn.initializers.lecun_normal(), _CONV_AXES),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",)),
        conv_general_dilated=operation,
        name=name,
    )


class NormSwish(nn.Module):
    """GroupNorm and swish: float [B,H,W,C] -> the same shape.

    Float32 maps by flax's GroupNorm, whose rounding the bits of a tokenizer that exists depend on; bfloat16 maps, in
    which one may be trained, by `group_norm_swish`.
    """

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        params = {
            name: self.param(name, nn.with_logical_partitioning(init, ("conv_out",)), x_BHWC.shape[-1:])
            for name, init in (("scale", nn.initializers.ones), ("bias", nn.initializers.zeros))
        }
        if x_BHWC.dtype == jnp.bfloat16:
            return group_norm_swish(x_BHWC, params)
        norm = nn.GroupNorm(GROUPS, epsilon=EPSILON, parent=None)
        return nn.swish(jnp.asarray(norm.apply({"params": params}, x_BHWC)))


class ResidualBlock(nn.Module):
    """GroupNorm, swish, 3x3 convolution, twice, around a skip connection.

    float [B,H,W,C] -> float [B,H,W,features]; the skip is a 1x1 convolution where C differs.
    """

    arithmetic: Arithmetic
    features: int

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B H W features"]:
        x_BHWC = constrain(x_BHWC, *_ACTIVATION)
        h = conv(self.arithmetic, self.features, name="conv1")(NormSwish(name="norm1")(x_BHWC))
        h = conv(self.arithmetic, self.features, name="conv2")(NormSwish(name="norm2")(h))
        if x_BHWC.shape[-1] != self.features:
            x_BHWC = conv(self.arithmetic, self.features, kernel=1, name="shortcut")(x_BHWC)
        return constrain(x_BHWC + h, *_ACTIVATION)


class AttentionBlock(nn.Module):
    """Attention of one head with all channels, over all places of a map, around a skip connection.

    float [B,H,W,C] -> the same shape.
    """

    arithmetic: Arithmetic

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        channels = x_BHWC.shape[-1]
        norm = nn.GroupNorm(
            GROUPS,
            epsilon=EPSILON,
            scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("conv_out",)),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("conv_out",)),
            name="norm",
        )
        normed = norm(x_BHWC.astype(jnp.float32))
        q, k, v = (
            conv(self.arithmetic, channels, kernel=1, name=name)(normed).reshape(len(normed), -1, channels)
            for name in ("query", "key", "value")
        )
        operands = self.arithmetic.operands
        q = (q * channels**-0.5).astype(operands)
        scores = jnp.einsum("bqc,bkc->bqk", q, k.astype(operands), preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores, -1).astype(operands)
        seen = jnp.einsum("bqk,bkc->bqc", weights, v.astype(operands), preferred_element_type=jnp.float32)
        out = conv(self.arithmetic, channels, kernel=1, name="out")(seen.reshape(x_BHWC.shape))
        return constrain(x_BHWC + out, *_ACTIVATION)


def _block(config: TokenizerConfig, arithmetic: Arithmetic, width: int, name: str) -> Any:
    """Returns a `ResidualBlock`, of which the backward pass keeps only what `TokenizerConfig.remat` says."""
    if config.remat != "block":
        return ResidualBlock(arithmetic, width, name=name)
    return functools.partial(_block_by_block, nn.remat(ResidualBlock)(arithmetic, width, name=name))


def _block_by_block(block: nn.Module, x_BHWC: jax.Array) -> Any:
    """Applies a block whose backward pass ends before that of the block below begins.

    A compiler is free to leave the gradients of all kernels to the end, with all maps that they are computed from.
    """

    def apply(block: Any, x_BHWC: jax.Array) -> jax.Array:
        return block(x_BHWC)

    def forward(block: nn.Module, x_BHWC: jax.Array) -> Any:
        return nn.vjp(apply, block, x_BHWC)

    def backward(gradient_of: Any, to_result: jax.Array) -> Any:
        return jax.lax.optimization_barrier(gradient_of(to_result))

    return nn.custom_vjp(apply, forward, backward)(block, x_BHWC)


class Encoder(nn.Module):
    """Picture -> features: float32 [B,H,W,3] in [-1,1] -> float32 [B,H/stride,W/stride,bits]."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, image_BHW3: Float[Array, "B H W 3"]) -> Float[Array, "B h w d"]:
        c, arithmetic = self.config, Arithmetic.of(self.config)
        p = c.pixel_patch
        x = einops.rearrange(image_BHW3, "b (h p) (w q) c -> b h w (p q c)", p=p, q=p)
        x = conv(arithmetic, c.base_width, name="conv_in")(x)
        for level, width in enumerate(c.encoder_widths):
            coarsest = level == len(c.encoder_widths) - 1
            for block in range(c.encoder_blocks):
                x = _block(c, arithmetic, width, f"down_{level}_block_{block}")(x)
                if c.attention and coarsest:
                    x = AttentionBlock(arithmetic, name=f"down_{level}_attention_{block}")(x)
            if not coarsest:
                # The release pads bottom and right only.
                padding, name = (0, 1), f"down_{level}_downsample"
                x = conv(arithmetic, x.shape[-1], stride=2, padding=padding, name=name)(x)
        for block in range(2):
            x = _block(c, arithmetic, x.shape[-1], f"mid_block_{block}")(x)
            if c.attention and block == 0:
                x = AttentionBlock(arithmetic, name="mid_attention")(x)
        return conv(arithmetic, c.bits, name="conv_out")(NormSwish(name="norm_out")(x)).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of the decoder.

    Attributes:
      kind: "conv", a 3x3 convolution; "block", a `ResidualBlock`; "attention", an `AttentionBlock`; "upsample", the
        nearest doubling and a 3x3 convolution; "out", GroupNorm ("norm_out"), swish and a 3x3 convolution.
      name: of its parameters.
      width: channels of its result.
      doublings: how often its result is twice as high and wide as the map of tokens.
    """

    kind: Literal["conv", "block", "attention", "upsample", "out"]
    name: str
    width: int
    doublings: int


def decoder_layers(config: TokenizerConfig) -> Sequence[Layer]:
    """Lists the decoder's layers as they run: what `Decoder`, `strips.py` and the count of FLOP walk along."""
    widths = config.decoder_widths
    coarsest = len(widths) - 1
    layers = [Layer("conv", "conv_in", widths[-1], 0), Layer("block", "mid_block_0", widths[-1], 0)]
    if config.attention:
        layers.append(Layer("attention", "mid_attention", widths[-1], 0))
    layers.append(Layer("block", "mid_block_1", widths[-1], 0))
    for level in reversed(range(len(widths))):
        for block in range(config.decoder_blocks):
            layers.append(Layer("block", f"up_{level}_block_{block}", widths[level], coarsest - level))
            if config.attention and level == coarsest:
                layers.append(Layer("attention", f"up_{level}_attention_{block}", widths[level], 0))
        if level > 0:
            layers.append(Layer("upsample", f"up_{level}_upsample", widths[level], coarsest - level + 1))
    return [*layers, Layer("out", "conv_out", 3 * config.pixel_patch**2, coarsest)]


class Decoder(nn.Module):
    """Codes -> picture: float32 [B,h,w,bits] -> float32 [B,h*stride,w*stride,3], not yet clipped.

    Its numbers are those of the config's compute dtype, or others for drawing (`convolution.drawing`).
    """

    config: TokenizerConfig

    @nn.compact
    def __call__(
        self, codes_BHWd: Float[Array, "B h w d"], arithmetic: Arithmetic | None = None
    ) -> Float[Array, "B H W 3"]:
        x, arithmetic = codes_BHWd, arithmetic or Arithmetic.of(self.config)
        for layer in decoder_layers(self.config):
            if layer.kind == "block":
                x = _block(self.config, arithmetic, layer.width, layer.name)(x)
                continue
            if layer.kind == "attention":
                x = AttentionBlock(arithmetic, name=layer.name)(x)
                continue
            if layer.kind == "out":
                x = NormSwish(name="norm_out")(x)
            x = conv(arithmetic, layer.width, doubled=layer.kind == "upsample", name=layer.name)(x)
        return from_patches(x.astype(jnp.float32), self.config.pixel_patch)


def from_patches(x_BhwD: jax.Array, p: int) -> jax.Array:
    """Arranges the channels [B,h,w,p*p*3] of the last convolution as a picture [B,h*p,w*p,3]."""
    return einops.rearrange(x_BhwD, "b h w (p q c) -> b (h p) (w q) c", p=p, q=p)
