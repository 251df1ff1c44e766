"""NSARM's transformation network: a low-quality picture's features -> the first scales (docs/spec_nsarm.md 3)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from infinity_jax.config import VECTOR, TokenizerConfig, UpscalerConfig
from infinity_jax.runtime.sharding import constrain
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import pyramid, resize
from infinity_jax.tokenizer.bsq import BSQ

NORM_EPS = 1e-5
_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # within 1/sqrt(inputs) of 0
_MAP_AXES = (None, None, "conv_out")
_gelu = functools.partial(nn.gelu, approximate=False)


def _boxed(init: Any, *axes: str | None) -> Any:
    return nn.with_logical_partitioning(init, axes)


def _conv(channels: int, name: str) -> nn.Conv:
    """Makes a convolution of 3x3, with zeros around the map."""
    return nn.Conv(
        channels,
        (3, 3),
        padding=1,
        kernel_init=_boxed(_UNIFORM, None, None, "conv_in", "conv_out"),
        bias_init=_boxed(nn.initializers.zeros, "conv_out"),
        name=name,
    )


def _map_norm(name: str) -> nn.LayerNorm:
    """Makes a LayerNorm over channels and places together, with a scale and a shift for each of them."""
    ones, zeros = (_boxed(init, *_MAP_AXES) for init in (nn.initializers.ones, nn.initializers.zeros))
    return nn.LayerNorm(
        NORM_EPS,
        scale_init=ones,
        bias_init=zeros,
        use_fast_variance=False,
        reduction_axes=(1, 2, 3),
        feature_axes=(1, 2, 3),
        name=name,
    )


def _norm(name: str) -> nn.LayerNorm:
    ones, zeros = (_boxed(init, "embed") for init in (nn.initializers.ones, nn.initializers.zeros))
    return nn.LayerNorm(NORM_EPS, scale_init=ones, bias_init=zeros, use_fast_variance=False, name=name)


def _linear(axes: tuple[str | None, ...], shape: tuple[int, ...], name: str) -> nn.DenseGeneral:
    return nn.DenseGeneral(
        shape,
        kernel_init=_boxed(_UNIFORM, *axes),
        bias_init=_boxed(nn.initializers.zeros, *axes[1:]),
        name=name,
    )


class EncoderLayer(nn.Module):
    """A post-norm transformer layer: float32 [B,N,C] -> the same, and None, as `nn.scan` wants it.

    Attributes:
      heads: of the attention.
      dropout: of what each sub-layer adds, and inside the feed-forward layer; 0 is none.
    """

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x_BNC: Float[Array, "B N C"], _: None) -> tuple[Float[Array, "B N C"], None]:
        width = x_BNC.shape[-1]
        x_BNC = constrain(x_BNC, "batch", None, None)
        dropped = nn.Dropout(self.dropout, deterministic=not self.dropout)
        of_head = (self.heads, width // self.heads)
        joined = _linear(("embed", None, "heads", "head_size"), (3, *of_head), "joined")(x_BNC)
        seen = jax.nn.dot_product_attention(*jnp.moveaxis(joined, 2, 0)).reshape(x_BNC.shape)
        added = _linear(("merged_heads", "embed"), (width,), "out")(seen)
        x_BNC = _norm("norm1")(x_BNC + dropped(added))
        hidden = dropped(nn.relu(_linear(("embed", "mlp"), (4 * width,), "fc1")(x_BNC)))
        added = _linear(("mlp", "embed"), (width,), "fc2")(hidden)
        return _norm("norm2")(x_BNC + dropped(added)), None


class OfScale(nn.Module):
    """The part of the network that one scale has for itself: float32 [B,S,S,d] -> tokens [B,s*s,d].

    Attributes:
      config: the whole network's.
      number: of the scale, from 0.
      dropout: see `EncoderLayer`.
    """

    config: UpscalerConfig
    number: int
    dropout: float

    @nn.compact
    def __call__(self, x_BSSd: Float[Array, "B S S d"]) -> Float[Array, "B N d"]:
        c, i = self.config, self.number
        width, size = c.widths[i], c.sizes[i]
        x = _gelu(_map_norm("norm1")(_conv(width // 2, "conv1")(x_BSSd)))
        x = _gelu(_map_norm("norm2")(_conv(width, "conv2")(x)))
        x = resize.area(x, (size, size)).reshape(len(x), size * size, width)
        self.sow("intermediates", "pooled", x)
        layers = nn.scan(
            EncoderLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            length=c.layers[i],
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = layers(c.heads[i], self.dropout, name="layers")(x, None)
        x = _gelu(_norm("norm_out")(_linear(("embed", "mlp"), (width // 2,), "hidden")(x)))
        return _linear(("mlp", "bits"), (c.bits,), "out")(x)


class UpscalerNetwork(nn.Module):
    """Predicts what the first scales quantise, not yet normalised, from the low-quality picture's features."""

    config: UpscalerConfig

    @nn.compact
    def __call__(
        self, features_BSSd: Float[Array, "B S S d"], train: bool = False
    ) -> tuple[Float[Array, "B _ _ d"], ...]:
        """Computes the residual of each given scale: float32 [B,s,s,d].

        Args:
          features_BSSd: float32, of the tokenizer's encoder.
          train: with dropout, which draws from the random stream "dropout".
        """
        c = self.config
        x = features_BSSd
        for number, channels in enumerate((*c.extractor, c.bits), 1):
            x = _gelu(_map_norm(f"norm{number}")(_conv(channels, f"conv{number}")(x)))
        self.sow("intermediates", "extracted", x)
        dropout = c.dropout if train else 0.0
        return tuple(
            to_map(OfScale(c, i, dropout, name=f"scale_{i}")(x), c.layout) for i in range(len(c.sizes))
        )


def to_map(tokens_BNd: Float[Array, "B N d"], layout: str) -> Float[Array, "B s s d"]:
    """Reads a scale's tokens as a map; `layout` as in `UpscalerConfig`."""
    batch, count, bits = tokens_BNd.shape
    side = round(count**0.5)
    if layout == "spatial":
        return tokens_BNd.reshape(batch, side, side, bits)
    return tokens_BNd.reshape(batch, bits, side, side).transpose(0, 2, 3, 1)


def given_bits(
    residuals: tuple[Float[Array, "B _ _ d"], ...], patchify: int
) -> tuple[Bool[Array, "B _ _ D"], ...]:
    """Takes the bits of predicted residuals, as the transformer reads them: [B,s/p,s/p,d*p*p]."""
    return tuple(pyramid.to_transformer(BSQ.choose(BSQ.project(z)), patchify) for z in residuals)


def problem_with(
    config: UpscalerConfig, tokenizer: TokenizerConfig, head: str, schedule: ScaleSchedule
) -> str:
    """Says why an upscaler does not belong to a system; "" where it does.

    Args:
      head: the transformer's, where it is known; else "bits".
      schedule: the transformer's, of square pictures.
    """
    finer, wanted = schedule.times(tokenizer.patchify), tuple((side, side) for side in config.sizes)
    pixels = finer.last[0] * tokenizer.stride
    if tokenizer.quantizer == VECTOR or head != "bits":
        return f"an upscaler predicts bits, and the system has quantizer {tokenizer.quantizer!r} and head {head!r}"
    if config.bits != tokenizer.bits:
        return f"upscaler.bits is {config.bits} and the system's tokenizer has {tokenizer.bits}"
    if pixels % config.factor:
        return f"upscaler.factor {config.factor} does not divide the {pixels} pixels of a picture's side"
    if finer.sizes[: len(wanted)] != wanted or len(wanted) == finer.n_scales:
        sizes = ", ".join(f"{height}x{width}" for height, width in finer.sizes)
        return (
            f"upscaler.sizes {config.sizes} are not the first scales of a picture, {sizes}, with at least one more "
            "after them"
        )
    return ""


def initial_variables(config: UpscalerConfig, seed: int) -> PyTree:
    """Draws fresh float32 parameters, boxed with their logical axis names."""
    features = jnp.zeros((1, config.side, config.side, config.bits), jnp.float32)
    return UpscalerNetwork(config).init(jax.random.key(seed), features)["params"]
