"""From text features to what the blocks read: the pooled condition vector and the cross-attention's input."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from infinity_jax.config import TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.transformer.attention import attend
from infinity_jax.transformer.layers import NORM_EPS, Dense, parameter, weight_init


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
        return Dense((c.width, c.width), ("merged_heads", "embed"), init, dtype, name="out")(
            pooled.reshape(-1, c.width)
        )


class TextCondition(nn.Module):
    """Text features -> condition vector and cross-attention context, with the learned empty caption."""

    config: TransformerConfig

    def setup(self):
        c = self.config
        rows = (c.text_length, c.text_channels)
        table_init = nn.initializers.truncated_normal(math.sqrt(1 / c.text_channels))
        self.empty_caption = parameter(self, "empty_caption", table_init, rows, ("text_rows", "text"))
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
