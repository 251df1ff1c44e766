"""The two attention layers of a block: their linear maps, the norm and positions of queries and keys (spec 4)."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.config import TransformerConfig
from infinity_jax.runtime.sharding import constrain
from infinity_jax.transformer.attention import attend
from infinity_jax.transformer.kernels.matmul import between_products
from infinity_jax.transformer.layers import Dense, output_init, parameter, recomputed, weight_init
from infinity_jax.transformer.rope2d import rotate, to_halves

MAX_LOG_SCALE = math.log(100.0)
_PLAIN_SCALE = 0.25  # over sqrt(head): VAR's without the norm of queries and keys
KeysValues = tuple[jax.Array, jax.Array]
Table = jax.Array | np.ndarray


@recomputed
def _apply_rotary(x_BHLd: jax.Array, scale: jax.Array | float, *cos_and_sin_Ln: Table) -> jax.Array:
    """Brings queries or keys to length `scale` and rotates them to their positions if these are rotary.

    In float32, whatever type they have and keep.
    """
    wide = x_BHLd.astype(jnp.float32)
    scaled = wide * jax.lax.rsqrt(jnp.maximum(jnp.square(wide).sum(-1, keepdims=True), 1e-24)) * scale
    return (rotate(scaled, *cos_and_sin_Ln) if cos_and_sin_Ln else scaled).astype(x_BHLd.dtype)


def _plain(x_BHLd: jax.Array, scale: float, *cos_and_sin_Ln: Table) -> jax.Array:
    """Multiplies queries or keys by `scale` and rotates them to their positions if these are rotary, in float32."""
    scaled = x_BHLd.astype(jnp.float32) * scale
    return (rotate(scaled, *cos_and_sin_Ln) if cos_and_sin_Ln else scaled).astype(x_BHLd.dtype)


def _apart(x_BLnHd: jax.Array) -> list[jax.Array]:
    """Takes the results of joined maps apart, each [B, H, L, head]."""
    # Each for itself: a single transposition of all would be an array of its own.
    return [x_BLnHd[:, :, i].swapaxes(1, 2) for i in range(x_BLnHd.shape[2])]


class _HeadMaps(nn.Module):
    """The linear maps of an attention layer: to queries, keys and values of each head, and from all heads."""

    config: TransformerConfig

    def setup(self) -> None:
        c = self.config
        shape, axes = (c.width, c.heads, c.head_size), ("embed", "heads", "head_size")
        init, dtype = weight_init(c), c.compute_dtype
        paired, result = self.query_key_init(init), between_products(dtype)
        # Three products: joining their gradients for a single one costs more on a CPU than it saves.
        self.query = Dense(shape, axes, paired, dtype, result=result)
        self.key = Dense(shape, axes, paired, dtype, bias=False, result=result)
        self.value = Dense(shape, axes, init, dtype, result=result)
        self.out = Dense((c.width, c.width), ("merged_heads", "embed"), output_init(c), dtype)
        # One product, on parameters from `joined_maps.joined` alone.
        self.query_key_value = Dense(
            (c.width, 3, *shape[1:]), (axes[0], None, *axes[1:]), init, dtype, result=result
        )
        self.key_value = Dense(
            (c.width, 2, *shape[1:]), (axes[0], None, *axes[1:]), init, dtype, result=result
        )

    def query_key_init(self, init: Callable) -> Callable:
        """Makes the initialiser of the kernels to queries and keys from that of the others: here the same."""
        return init

    def merge(self, out_BHLd: jax.Array) -> jax.Array:
        """Projects the outputs of all heads: [B, H, L, head] -> float32 [B, L, C]."""
        B, _, L, _ = out_BHLd.shape
        return self.out(out_BHLd.transpose(0, 2, 1, 3).reshape(B, L, self.config.width))


class SelfAttention(_HeadMaps):
    """Attention of picture tokens to each other, with rotary positions or none.

    By cosine with a learned log-scale per head, or by plain products.
    """

    def setup(self) -> None:
        super().setup()
        if self.config.attention == "cosine":
            init = nn.initializers.constant(math.log(4.0))
            self.log_scale = parameter(self, "log_scale", init, (self.config.heads,), ("heads",))

    def query_key_init(self, init: Callable) -> Callable:
        """Makes the initialiser whose channels are in the order that `rotate` wants.

        Drawn in the release's order, so that a seed gives the same model in both.
        """
        return lambda key, shape, dtype=jnp.float32: to_halves(init(key, shape, dtype))

    def project(self, x_BLC: jax.Array, *cos_and_sin_Ln: Table) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Computes queries, keys, values, each [B, H, L, head], rotated to positions if these are given.

        Theirs is the type that `between_products` says.
        """
        if self.has_variable("params", "query_key_value"):
            q, k, v = _apart(self.query_key_value(x_BLC))
        else:
            q, k, v = (layer(x_BLC).swapaxes(1, 2) for layer in (self.query, self.key, self.value))
        if self.config.attention == "cosine":
            scale = jnp.exp(jnp.minimum(self.log_scale, MAX_LOG_SCALE))
            q = _apply_rotary(q, scale[:, None, None], *cos_and_sin_Ln)
            k = _apply_rotary(k, 1.0, *cos_and_sin_Ln)
        else:
            q = _plain(q, _PLAIN_SCALE / math.sqrt(self.config.head_size), *cos_and_sin_Ln)
            k = _plain(k, 1.0, *cos_and_sin_Ln)
        q, k, v = (constrain(x, "batch", "attention_heads", None, None) for x in (q, k, v))
        return q, k, v


class CrossAttention(_HeadMaps):
    """Attention of picture tokens to the text's valid tokens."""

    def keys_values(self, context_BTC: jax.Array) -> KeysValues:
        """Computes keys and values of the text, each [B, H, T, head] of the type that `between_products` says."""
        if self.has_variable("params", "key_value"):
            keys, values = _apart(self.key_value(context_BTC))
        else:
            keys, values = (layer(context_BTC).swapaxes(1, 2) for layer in (self.key, self.value))
        return constrain(keys, "batch", "heads", None, None), constrain(values, "batch", "heads", None, None)

    def __call__(self, x_BLC: jax.Array, text_kv: KeysValues, mask_BT: jax.Array) -> jax.Array:
        """Lets float32 [B, L, C] look at the text: float32 [B, L, C], to be added."""
        q = self.query(x_BLC).transpose(0, 2, 1, 3)
        q = (q.astype(jnp.float32) / math.sqrt(self.config.head_size)).astype(q.dtype)
        q = constrain(q, "batch", "heads", "tokens", None)
        return self.merge(
            attend(q, *text_kv, self.config.compute_dtype, mask_BT[:, None, None, :], first=True)
        )
