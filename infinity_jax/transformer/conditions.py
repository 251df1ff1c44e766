"""What pictures are drawn from, as blocks read it: a vector, and of captions a sequence (docs/spec.md section 4)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from infinity_jax.config import LABEL_BASE, LABEL_CHANNELS, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.transformer.attention import attend
from infinity_jax.transformer.layers import NORM_EPS, Dense, caption_init, parameter, weight_init

# Operands of the maps that make the condition and the residual stream and cost nothing, whatever `compute_dtype` is.
FLOAT32 = "float32"


class AttentivePool(nn.Module):
    """Attention of one learned query to the text tokens, then a linear map to width C."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, text_BTC: jax.Array, mask_BT: jax.Array) -> jax.Array:
        """float32 [B, C] from normalised features [B, T, text_channels], or [1, T, text_channels] for all masks."""
        c = self.config
        heads = c.pool_heads
        head = c.width // heads
        init, dtype = weight_init(c), c.compute_dtype
        query = parameter(self, "query", init, (heads, head), ("heads", "head_size"))
        shape, axes = (c.text_channels, heads, head), ("text", "heads", "head_size")
        k = Dense(shape, axes, init, dtype, bias=False, name="key")(text_BTC).swapaxes(1, 2)
        v = Dense(shape, axes, init, dtype, name="value")(text_BTC).swapaxes(1, 2)
        batch = len(mask_BT)
        q = jnp.broadcast_to(query[None, :, None] / math.sqrt(head), (batch, heads, 1, head))
        k, v = (jnp.broadcast_to(x, (batch, *x.shape[1:])) for x in (k, v))
        pooled = attend(q, k, v, dtype, mask_BT[:, None, None, :])
        out = Dense((c.width, c.width), ("merged_heads", "embed"), init, FLOAT32, name="out")
        return out(pooled.reshape(-1, c.width))


class TextCondition(nn.Module):
    """Text features -> condition vector and cross-attention context, with the learned empty caption."""

    config: TransformerConfig

    def setup(self):
        c = self.config
        rows = (c.text_length, c.text_channels)
        init = caption_init(c.text_channels)
        self.empty_caption = parameter(self, "empty_caption", init, rows, ("text_rows", "text"))
        self.norm_scale = parameter(self, "norm_scale", nn.initializers.ones, (c.text_channels,), ("text",))
        self.pool = AttentivePool(c)
        init, dtype = weight_init(c), c.compute_dtype
        self.fc1 = Dense((c.text_channels, c.width), ("text", "embed_out"), init, dtype)
        self.fc2 = Dense((c.width, c.width), ("embed", "embed_out"), init, dtype)

    def __call__(self, text_BTC: jax.Array, mask_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Condition vector float32 [B, C] and context float32 [B, T, C]; where one text serves all masks, [1, T, C]."""
        mean_square = jnp.square(text_BTC).mean(-1, keepdims=True)
        normed = text_BTC * jax.lax.rsqrt(mean_square + NORM_EPS) * self.norm_scale
        return self.pool(normed, mask_BT), self.fc2(nn.gelu(self.fc1(normed), approximate=True))

    def empty(self, length: int) -> jax.Array:
        """Returns the learned features of an absent caption of `length` tokens, float32 [length, text_channels]."""
        if length > self.config.text_length:
            raise UserError(
                f"text of {length} tokens is longer than the model's text_length {self.config.text_length}; "
                "truncate the text or raise model.text_length"
            )
        return self.empty_caption[:length]


class ClassCondition(nn.Module):
    """Labels -> condition vector, without a context; one more row stands for an absent label (docs/spec_var.md 3).

    Labels come as captions do, as features of one token: see `text/labels.py`.
    """

    config: TransformerConfig

    def setup(self):
        c = self.config
        shape, axes = (c.classes + 1, c.width), ("text_rows", "embed")
        self.embedding = parameter(self, "embedding", weight_init(c), shape, axes)

    def __call__(self, text_BTC: jax.Array, mask_BT: jax.Array) -> tuple[jax.Array, None]:
        """Condition vector float32 [B, C] of labels, or [1, C] of one for all masks, which say nothing here."""
        return jnp.broadcast_to(
            self.embedding[of_digits(text_BTC[:, 0])], (len(mask_BT), self.config.width)
        ), None

    def empty(self, length: int) -> jax.Array:
        """Returns the features of an absent label, float32 [length, 2]."""
        return jnp.broadcast_to(digits(jnp.array(self.config.classes)), (length, LABEL_CHANNELS))


def digits(label: jax.Array) -> jax.Array:
    """Writes labels int [...] as features float32 [..., 2]: digits to the base of 256, which bfloat16 holds exactly."""
    return jnp.stack([label // LABEL_BASE, label % LABEL_BASE], -1).astype(jnp.float32)


def of_digits(features: jax.Array) -> jax.Array:
    """Reads labels int32 [...] from features [..., 2]: the inverse of `digits`."""
    high, low = features[..., 0].astype(jnp.int32), features[..., 1].astype(jnp.int32)
    return LABEL_BASE * high + low
