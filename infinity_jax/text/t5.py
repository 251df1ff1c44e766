"""The encoder of T5 v1.1, as Flan-T5 has it (Raffel et al. 2020; gated GELU of Shazeer 2020).

Differences to an ordinary transformer: RMSNorm before each layer, attention scores that are not divided by
sqrt(head size), no biases, and positions that only enter as a learned number per head and distance, the same
in every layer. Residual stream, norms and softmax are float32 whatever the products are computed in: the
residual stream and the gated hidden layer of the larger models leave float16's range.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from infinity_jax.errors import UserError
from infinity_jax.transformer.kernels.attention_xla import MASKED
from infinity_jax.transformer.kernels.matmul import precision
from infinity_jax.transformer.layers import Dense, parameter

# Our field -> the key of a Hugging Face config.json.
_HF_KEYS = {
    "width": "d_model",
    "head_size": "d_kv",
    "ffn_width": "d_ff",
    "heads": "num_heads",
    "layers": "num_layers",
    "vocabulary": "vocab_size",
    "position_buckets": "relative_attention_num_buckets",
    "position_distance": "relative_attention_max_distance",
    "norm_eps": "layer_norm_epsilon",
}
_FEED_FORWARD = "gated-gelu"


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Size of a T5 v1.1 encoder.

    Attributes:
      width: d_model, channels of the residual stream and of the features.
      head_size, heads: d_kv and num_heads; their product need not be the width.
      ffn_width: d_ff, hidden channels of the gated feed-forward layer.
      layers: of the encoder.
      vocabulary: rows of the embedding; at least as many as the tokenizer has tokens.
      position_buckets, position_distance: classes of distances; those beyond `position_distance` share one.
      norm_eps: of RMSNorm.
    """

    width: int
    head_size: int
    ffn_width: int
    heads: int
    layers: int
    vocabulary: int = 32128
    position_buckets: int = 32
    position_distance: int = 128
    norm_eps: float = 1e-6

    def __post_init__(self):
        if self.position_buckets < 4 or self.position_buckets % 4:
            raise UserError(
                f"T5 config: relative_attention_num_buckets is {self.position_buckets}; use a multiple of 4"
            )
        if self.position_distance <= self.position_buckets // 4:
            raise UserError(
                f"T5 config: relative_attention_max_distance {self.position_distance} must be larger than a "
                f"quarter of the {self.position_buckets} buckets"
            )

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> "T5Config":
        """Converts a Hugging Face config.json's values; what T5 v1.1 has no default for must be there.

        Raises:
          UserError: a value is missing or impossible, or the model is not T5 v1.1 (its feed_forward_proj is
            not "gated-gelu").
        """
        seen = values.get("feed_forward_proj", "missing")
        if seen != _FEED_FORWARD:
            raise UserError(
                f"T5 config: feed_forward_proj is {seen!r}, only T5 v1.1 and Flan-T5 ({_FEED_FORWARD!r}) are "
                "supported; give a Flan-T5 model"
            )
        missing = [_HF_KEYS[f.name] for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
        missing = [key for key in missing if key not in values]
        if missing:
            raise UserError(f"T5 config: {', '.join(missing)} missing; give the config.json of a T5 model")
        sizes = {ours: values[key] for ours, key in _HF_KEYS.items() if key in values}
        for ours, value in sizes.items():
            kind = float if ours == "norm_eps" else int
            if not isinstance(value, kind) or isinstance(value, bool) or value <= 0:
                raise UserError(
                    f"T5 config: {_HF_KEYS[ours]} is {value!r}; it must be a positive {kind.__name__}"
                )
        return cls(**sizes)

    def to_hf(self) -> dict[str, Any]:
        """Returns the values of a config.json that `from_hf` and Hugging Face's T5EncoderModel read."""
        sizes = {key: getattr(self, ours) for ours, key in _HF_KEYS.items()}
        return {"model_type": "t5", "feed_forward_proj": _FEED_FORWARD, **sizes}


# Width, head size, ffn width, heads, layers.
NAMES = {
    "small": T5Config(512, 64, 1024, 6, 8),
    "base": T5Config(768, 64, 2048, 12, 12),
    "large": T5Config(1024, 64, 2816, 16, 24),
    "xl": T5Config(2048, 64, 5120, 32, 24),
    "xxl": T5Config(4096, 64, 10240, 64, 24),
}


def position_bucket(tokens: int, config: T5Config) -> Int[np.ndarray, "T T"]:
    """Classifies the distance from each token (row) to each other one (column), int32.

    Half of the classes are for tokens that follow. Of each half, the first half holds single distances and
    the rest ranges that grow by a constant factor up to `position_distance`.
    """
    side = config.position_buckets // 2
    exact = side // 2
    distance = np.arange(tokens)[None] - np.arange(tokens)[:, None]
    size = np.abs(distance)
    # In float32, as the models were trained: where a range ends exactly at a distance, rounding decides.
    logarithm = np.log(np.maximum(size, 1) / exact).astype(np.float32)
    position = logarithm / np.float32(math.log(config.position_distance / exact)) * np.float32(side - exact)
    far = np.minimum(exact + np.maximum(position, 0).astype(np.int32), side - 1)
    return (np.where(size < exact, size, far) + side * (distance > 0)).astype(np.int32)


def rms_norm(x: Float[Array, "*rows C"], scale_C: Float[Array, " C"], eps: float) -> Float[Array, "*rows C"]:
    """Divides x by its root mean square along the last axis and multiplies by the learned scale; float32."""
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps) * scale_C.astype(jnp.float32)


class T5Attention(nn.Module):
    """Self-attention with a bias for each head and distance, softmax scale 1."""

    config: T5Config
    compute_dtype: str

    @nn.compact
    def __call__(
        self, x_BTC: Float[Array, "B T C"], bias_HTT: Float[Array, "H T T"], mask_BT: Bool[Array, "B T"]
    ) -> Float[Array, "B T C"]:
        c, dtype = self.config, self.compute_dtype
        shape, axes = (c.width, c.heads, c.head_size), ("embed", "heads", "head_size")
        # Scores are not divided by sqrt(head size); the first weights of queries make up for it.
        deviations = {"query": (c.width * c.head_size) ** -0.5, "key": c.width**-0.5, "value": c.width**-0.5}
        q, k, v = (
            Dense(shape, axes, nn.initializers.normal(deviation), dtype, bias=False, name=name)(x_BTC)
            for name, deviation in deviations.items()
        )
        scores_BHQK = _product("bqhd,bkhd->bhqk", q, k, dtype) + bias_HTT
        # A finite floor: a row of padding alone must not become NaN.
        weights_BHQK = nn.softmax(jnp.where(mask_BT[:, None, None, :], scores_BHQK, MASKED))
        mixed_BTHd = _product("bhqk,bkhd->bqhd", weights_BHQK, v, dtype)
        inner = c.heads * c.head_size
        out = nn.initializers.normal(inner**-0.5)
        return Dense((inner, c.width), ("merged_heads", "embed"), out, dtype, bias=False, name="out")(
            mixed_BTHd.reshape(*x_BTC.shape[:2], inner)
        )


def _product(axes: str, a: jax.Array, b: jax.Array, dtype: str) -> jax.Array:
    return jnp.einsum(
        axes, a.astype(dtype), b.astype(dtype), precision=precision(dtype), preferred_element_type=jnp.float32
    )


class T5FeedForward(nn.Module):
    """Gated GELU (tanh form): down(gelu(gate(x)) * up(x))."""

    config: T5Config
    compute_dtype: str

    @nn.compact
    def __call__(self, x_BTC: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        c, dtype = self.config, self.compute_dtype
        gate, up = (
            Dense(
                (c.width, c.ffn_width), ("embed", "mlp"), nn.initializers.normal(c.width**-0.5), dtype,
                bias=False, name=name,
            )(x_BTC)
            for name in ("gate", "up")
        )  # fmt: skip
        out = nn.initializers.normal(c.ffn_width**-0.5)
        return Dense((c.ffn_width, c.width), ("mlp", "embed"), out, dtype, bias=False, name="down")(
            nn.gelu(gate, approximate=True) * up
        )


class T5Block(nn.Module):
    """Pre-norm attention and feed-forward layer on the residual stream."""

    config: T5Config
    compute_dtype: str

    @nn.compact
    def __call__(
        self, x_BTC: Float[Array, "B T C"], bias_HTT: Float[Array, "H T T"], mask_BT: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B T C"], None]:
        """Returns the residual stream after this block (and None, as a scan over layers wants)."""
        c, dtype = self.config, self.compute_dtype
        attention_norm, ffn_norm = (
            parameter(self, name, nn.initializers.ones, (c.width,), ("embed",))
            for name in ("attention_norm_scale", "ffn_norm_scale")
        )
        normed = rms_norm(x_BTC, attention_norm, c.norm_eps)
        x_BTC += T5Attention(c, dtype, name="attention")(normed, bias_HTT, mask_BT)
        x_BTC += T5FeedForward(c, dtype, name="ffn")(rms_norm(x_BTC, ffn_norm, c.norm_eps))
        return x_BTC, None


class T5(nn.Module):
    """Token ids and mask -> the last layer's features.

    Attributes:
      config: size.
      compute_dtype: "float32" or "bfloat16", what the operands of the products are rounded to. Parameters may
        be of any float type.
    """

    config: T5Config
    compute_dtype: str = "float32"

    def flops(self, tokens: int) -> int:
        """Counts the FLOP of one text padded to so many tokens: products only, with scores of padding."""
        c, inner = self.config, self.config.heads * self.config.head_size
        return 2 * c.layers * tokens * (4 * c.width * inner + 3 * c.width * c.ffn_width + 2 * tokens * inner)

    @nn.compact
    def __call__(self, ids_BT: Int[Array, "B T"], mask_BT: Bool[Array, "B T"]) -> Float[Array, "B T C"]:
        """Returns float32 features; a token sees only those where the mask is True."""
        c = self.config
        normal, ones = nn.initializers.normal(1.0), nn.initializers.ones
        table = parameter(self, "embedding", normal, (c.vocabulary, c.width), ("vocabulary", "embed"))
        bias = parameter(
            self, "position_bias", nn.initializers.normal(c.width**-0.5), (c.position_buckets, c.heads),
            ("position_buckets", "heads"),
        )  # fmt: skip
        final_norm = parameter(self, "final_norm_scale", ones, (c.width,), ("embed",))
        x_BTC = table[ids_BT].astype(jnp.float32)
        bias_TTH = bias.astype(jnp.float32)[position_bucket(ids_BT.shape[1], c)]
        blocks = nn.scan(
            T5Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=c.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, self.compute_dtype, name="blocks")
        x_BTC, _ = blocks(x_BTC, bias_TTH.transpose(2, 0, 1), mask_BT)
        return rms_norm(x_BTC, final_norm, c.norm_eps)


def param_variables(config: T5Config, compute_dtype: str = "float32") -> PyTree:
    """Returns the encoder's parameters as ShapeDtypeStructs, boxed with their logical axis names.

    The names are those of `model.layers`, and "vocabulary" and "position_buckets" for the rows of the two tables.
    """
    ids, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
    return jax.eval_shape(lambda: T5(config, compute_dtype).init(jax.random.key(0), ids, mask))["params"]


def param_shapes(config: T5Config) -> PyTree:
    """Returns the encoder's parameters as nested dicts of ShapeDtypeStructs, without axis names."""
    return nn.meta.unbox(param_variables(config))
