"""The ViT encoder and decoder of BSQ-ViT (Zhao et al., arXiv 2406.07548; docs/spec_bsq_vit.md section 1)."""

import functools
from collections.abc import Callable
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from infinity_jax.config import TokenizerConfig
from infinity_jax.errors import UserError
from infinity_jax.runtime.sharding import constrain
from infinity_jax.tokenizer.convolution import Arithmetic

NORM_EPS = 1e-5
_NORMAL = nn.initializers.normal(0.02)


def _around_zero(inputs: int) -> Callable:
    """Makes the initialiser of PyTorch's linear maps: uniform within 1/sqrt(inputs) around 0."""
    bound = inputs**-0.5
    uniform = nn.initializers.uniform(2 * bound)
    return lambda *args: uniform(*args) - bound


def _linear(
    arithmetic: Arithmetic,
    axes: tuple[str | None, ...],
    shape: tuple[int, ...],
    name: str,
    **inits: Callable | None,
) -> nn.DenseGeneral:
    """Makes a linear map of the last axis, with float32 sums.

    Args:
      axes: logical names, the input's first.
      shape: sizes that come out.
      inits: of "kernel" and "bias"; else a normal of 0.02 and zeros. A bias of None is none.
    """
    kernel, bias = inits.get("kernel") or _NORMAL, inits.get("bias", nn.initializers.zeros)
    return nn.DenseGeneral(
        shape,
        use_bias=bias is not None,
        dtype=jnp.dtype(arithmetic.operands),
        kernel_init=nn.with_logical_partitioning(kernel, axes),
        bias_init=nn.with_logical_partitioning(bias or nn.initializers.zeros, axes[1:]),
        dot_general=functools.partial(lax.dot_general, preferred_element_type=jnp.dtype(arithmetic.maps)),
        name=name,
    )


def _norm(name: str) -> nn.LayerNorm:
    ones, zeros = (
        nn.with_logical_partitioning(init, ("embed",))
        for init in (nn.initializers.ones, nn.initializers.zeros)
    )
    return nn.LayerNorm(NORM_EPS, scale_init=ones, bias_init=zeros, use_fast_variance=False, name=name)


class Block(nn.Module):
    """Attention of all tokens and a feed-forward layer, each after a LayerNorm: float32 [B,L,C] -> the same, and None.

    As `nn.scan` wants it.
    """

    arithmetic: Arithmetic
    heads: int

    @nn.compact
    def __call__(self, x_BLC: Float[Array, "B L C"], _: None) -> tuple[Float[Array, "B L C"], None]:
        linear = functools.partial(_linear, self.arithmetic)
        width = x_BLC.shape[-1]
        of_head = (self.heads, width // self.heads)
        x_BLC = constrain(x_BLC, "batch", None, None)
        joined = linear(("embed", None, "heads", "head_size"), (3, *of_head), "joined")
        # In the type of the products' operands, which fused kernels want.
        q, k, v = jnp.moveaxis(joined(_norm("norm1")(x_BLC)), 2, 0).astype(self.arithmetic.operands)
        seen = jax.nn.dot_product_attention(q, k, v).reshape(x_BLC.shape)
        x_BLC = x_BLC + linear(("merged_heads", "embed"), (width,), "out")(seen).astype(jnp.float32)
        hidden = linear(("embed", "mlp"), (4 * width,), "fc1")(_norm("norm2")(x_BLC))
        hidden = nn.gelu(hidden, approximate=False)
        x_BLC = x_BLC + linear(("mlp", "embed"), (width,), "fc2")(hidden).astype(jnp.float32)
        return x_BLC, None


class Body(nn.Module):
    """Positions, LayerNorm, blocks, LayerNorm: float [B,L,C] -> float32 [B,L,C]."""

    arithmetic: Arithmetic
    heads: int
    layers: int
    remat: bool

    @nn.compact
    def __call__(self, x_BLC: Float[Array, "B L C"]) -> Float[Array, "B L C"]:
        init = nn.with_logical_partitioning(_NORMAL, (None, "embed"))
        positions: Any = self.param("positions", init, x_BLC.shape[1:])
        x_BLC = x_BLC.astype(jnp.float32) + positions
        x_BLC = _norm("norm_in")(x_BLC)
        blocks = nn.scan(
            nn.remat(Block, prevent_cse=False) if self.remat else Block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            length=self.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(self.arithmetic, self.heads, name="blocks")
        return _norm("norm_out")(blocks(x_BLC, None)[0])


def _body(config: TokenizerConfig, half: int, arithmetic: Arithmetic) -> Body:
    layers = (config.encoder_blocks, config.decoder_blocks)[half]
    return Body(arithmetic, config.heads_of_halves[half], layers, config.remat == "block", name="body")


def _check_side(config: TokenizerConfig, height: int, width: int) -> None:
    if (height, width) != (config.side, config.side):
        raise UserError(
            f"this tokenizer's ViT has positions for pictures of {config.side}x{config.side} pixels, and these are "
            f"{height}x{width}; use that size"
        )


class Encoder(nn.Module):
    """Picture -> features: float32 [B,S,S,3] -> float32 [B,S/patch,S/patch,bits].

    Raises UserError for pictures of another side than the config's.
    """

    config: TokenizerConfig

    @nn.compact
    def __call__(self, image_BHW3: Float[Array, "B H W 3"]) -> Float[Array, "B h w d"]:
        c, arithmetic = self.config, Arithmetic.of(self.config)
        _check_side(c, *image_BHW3.shape[1:3])
        p, (width,) = c.pixel_patch, c.encoder_widths
        x = einops.rearrange(image_BHW3, "b (h p) (w q) c -> b (h w) (c p q)", p=p, q=p)
        x = _linear(arithmetic, (None, "embed"), (width,), "patches", bias=None)(x)
        x = _body(c, 0, arithmetic)(x)
        init = _around_zero(width)
        x = _linear(arithmetic, ("embed", "bits"), (c.bits,), "out", kernel=init, bias=init)(x)
        return einops.rearrange(x.astype(jnp.float32), "b (h w) d -> b h w d", h=c.side // p)


class Decoder(nn.Module):
    """Codes -> picture: float32 [B,h,w,bits] -> float32 [B,S,S,3], not yet clipped; 6 channels of a `laplace` one.

    Its numbers are those of the config's compute dtype, or others for drawing (`convolution.drawing`).
    """

    config: TokenizerConfig

    @nn.compact
    def __call__(
        self, codes_BHWd: Float[Array, "B h w d"], arithmetic: Arithmetic | None = None
    ) -> Float[Array, "B H W c"]:
        c, arithmetic = self.config, arithmetic or Arithmetic.of(self.config)
        p, (width,) = c.pixel_patch, c.decoder_widths
        height, columns = codes_BHWd.shape[1:3]
        _check_side(c, height * p, columns * p)
        linear, init = functools.partial(_linear, arithmetic), _around_zero(c.bits)
        x: Any = codes_BHWd.reshape(len(codes_BHWd), -1, c.bits)
        x = linear(("bits", "embed"), (width,), "in", kernel=init, bias=init)(x)
        x = _body(c, 1, arithmetic)(x)
        x = nn.tanh(linear(("embed", "mlp"), (c.hidden,), "fc1", bias=_around_zero(width))(x))
        channels = (6 if c.laplace else 3) * p**2
        x = linear(("mlp", None), (channels,), "fc2", bias=_around_zero(c.hidden))(x)
        x = einops.rearrange(x, "b (h w) (c p q) -> b (h p) (w q) c", h=height, p=p, q=p)
        return x.astype(jnp.float32)


def largest_map_channels(config: TokenizerConfig, tokens: int) -> int:
    """Counts the numbers a token of the decoder's widest array: of a feed-forward layer, or scores of all heads."""
    return max(4 * config.decoder_widths[0], config.hidden, config.heads_of_halves[1] * tokens)
