"""One transformer block: AdaLN self-attention, cross-attention to a text, AdaLN feed-forward (spec 4)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from infinity_jax.config import TransformerConfig
from infinity_jax.runtime.sharding import constrain
from infinity_jax.scales import ScaleSchedule
from infinity_jax.transformer.attention import attend, block_causal_attention
from infinity_jax.transformer.attention_layers import CrossAttention, KeysValues, SelfAttention
from infinity_jax.transformer.kernels.matmul import between_products
from infinity_jax.transformer.kernels.storage import from_storage, to_storage
from infinity_jax.transformer.layers import (
    Dense,
    adaln_map_init,
    adaln_table_init,
    layer_norm,
    modulate,
    output_init,
    parameter,
    recomputed,
    weight_init,
)
from infinity_jax.transformer.rope2d import rope_table

INPUT = "block input"  # the name by which a remat policy knows what goes into a block
SELF_ATTENTION, CROSS_ATTENTION, FEED_FORWARD = range(3)  # the sub-layers of a block, in order


class ChosenTokens(NamedTuple):
    """The n of N tokens of a scale that one sub-layer runs: all, unless the sampler prunes.

    Attributes:
      take: picks their rows [B, n, ...] from an array [B, N, ...], or from [1, N, ...] that all pictures share.
      fill: makes the update [B, N, C] of all tokens from that [B, n, C] of those that ran.
    """

    take: Callable[[Any], Any]
    fill: Callable[[jax.Array], jax.Array]


class Seen(NamedTuple):
    """What queries attend to.

    Attributes:
      keys, values: each [B, H, T, head], in storage form in `compute_dtype`.
      count: how many of the T are there, the first ones; what lies behind them is not read.
    """

    keys: jax.Array
    values: jax.Array
    count: int


# (residual stream float32 [B, N, C] before a sub-layer, number of the sub-layer) -> the tokens that it runs.
TokenChoice = Callable[[jax.Array, int], ChosenTokens]
# (keys and values of one scale, each [B, H, n, head] in storage form) -> those that its queries see, with earlier
# scales'; and the cache that holds them.
Remember = Callable[[KeysValues], tuple[Seen, KeysValues]]


def all_tokens(x_BNC: jax.Array, sublayer: int) -> ChosenTokens:
    """Chooses every token."""
    return ChosenTokens(lambda x: x, lambda update_BNC: update_BNC)


@flax.struct.dataclass
class Condition:
    """What the text or the label gives to every block.

    Attributes:
      vector_BC: float32 [B, C], the pooled text or the label's; the AdaLN of the head and of "own" blocks read it.
      adaln_B6C: float32 [B, 6, C], the shared map of it: gamma1, gamma2, scale1, scale2, shift1, shift2; None where
        each block has its own.
      context_BTC: float32 [B, T, C], the input of the cross-attention's keys and values; None without a text.
      mask_BT: bool [B, T], True on text tokens that exist, which are the first of each text; None without.
    """

    vector_BC: jax.Array
    adaln_B6C: jax.Array | None
    context_BTC: jax.Array | None = None
    mask_BT: jax.Array | None = None


@recomputed
def _scaled_norm(x_BLC: jax.Array, scale_C: jax.Array, bias_C: jax.Array) -> jax.Array:
    return layer_norm(x_BLC) * scale_C + bias_C


@recomputed
def _gelu(x: jax.Array) -> jax.Array:
    return nn.gelu(x.astype(jnp.float32), approximate=True).astype(x.dtype)


class FeedForward(nn.Module):
    """Two linear layers with GELU (tanh form) between."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BLC: jax.Array) -> jax.Array:
        c = self.config
        dtype, hidden = c.compute_dtype, between_products(c.compute_dtype)
        into = Dense(
            (c.width, c.ffn_width), ("embed", "mlp"), weight_init(c), dtype, result=hidden, name="fc1"
        )
        back = Dense((c.ffn_width, c.width), ("mlp", "embed"), output_init(c), dtype, name="fc2")
        return back(_gelu(constrain(into(x_BLC), "batch", "tokens", "mlp")))


class Block(nn.Module):
    """A block. `__call__` sees all scales at once (training); `step` sees one scale and the cached past (sampling).

    Attributes:
      config, schedule: what is computed.
    """

    config: TransformerConfig
    schedule: ScaleSchedule

    def setup(self) -> None:
        c, ones, zeros = self.config, nn.initializers.ones, nn.initializers.zeros
        if c.adaln == "shared":
            self.adaln_table = parameter(
                self, "adaln_table", adaln_table_init(c), (6, c.width), ("adaln", "embed")
            )
        else:
            axes = ("embed", "adaln", "embed_out")
            self.adaln = Dense((c.width, 6, c.width), axes, adaln_map_init(c), c.compute_dtype)
        self.self_attention = SelfAttention(c)
        if c.condition == "text":
            self.cross_attention = CrossAttention(c)
            self.cross_norm_scale = parameter(self, "cross_norm_scale", ones, (c.width,), ("embed",))
            self.cross_norm_bias = parameter(self, "cross_norm_bias", zeros, (c.width,), ("embed",))
        self.ffn = FeedForward(c)

    def __call__(
        self, x_BLC: jax.Array, path_factors_2B: jax.Array | None, condition: Condition
    ) -> tuple[jax.Array, None]:
        """Runs the block on all tokens: the residual stream float32 [B, L, C] (and None, as a scan over layers wants).

        Args:
          path_factors_2B: float32, stochastic depth: what the self-attention's and the feed-forward layer's update of
            each picture is multiplied by; None is 1.
        """
        x_BLC = checkpoint_name(constrain(x_BLC, "batch", "tokens", None), INPUT)
        gamma1, gamma2, *modulation = self._modulation(condition)
        normed_BLC = modulate(x_BLC, modulation[0], modulation[2])
        q, k, v = self.self_attention.project(normed_BLC, *self._rotary_positions(0, self.schedule.length))
        attended = block_causal_attention(q, k, v, self.schedule, self.config.compute_dtype)
        if path_factors_2B is not None:
            gamma1, gamma2 = gamma1 * path_factors_2B[0][:, None], gamma2 * path_factors_2B[1][:, None]
        x_BLC += self.self_attention.merge(attended) * gamma1[:, None]
        if condition.context_BTC is not None:
            x_BLC += self._cross(x_BLC, self.text_keys_values(condition.context_BTC), condition.mask_BT)
        x_BLC += self.ffn(modulate(x_BLC, modulation[1], modulation[3])) * gamma2[:, None]
        return constrain(x_BLC, "batch", "tokens", None), None

    def step(
        self,
        x_BNC: jax.Array,
        remember: Remember,
        text_kv: KeysValues | None,
        condition: Condition,
        scale: int,
        choose: TokenChoice = all_tokens,
    ) -> tuple[jax.Array, KeysValues, tuple[jax.Array, ...]]:
        """Runs the block on one scale of N tokens.

        Args:
          remember: caches the keys and values of the tokens that run, and gives those of all scales so far.
          text_kv: from `text_keys_values`; None without a text.
          scale: its number in the schedule, from 0.
          choose: picks the tokens that each sub-layer runs; the others get what it fills in.
        Returns:
          the residual stream float32 [B, N, C]; the cache that `remember` returned; what each sub-layer added to the
          stream, float32 [B, N, C], of those that there are.
        """
        x_BNC = constrain(x_BNC, "batch", None, None)
        gamma1, gamma2, *modulation = self._modulation(condition)
        take, fill = choose(x_BNC, SELF_ATTENTION)
        tables = self._rotary_positions(*self.schedule.offsets[scale : scale + 2])
        positions = (take(table_Nn[None])[:, None] for table_Nn in tables)
        dtype = self.config.compute_dtype
        q, k, v = self.self_attention.project(modulate(take(x_BNC), modulation[0], modulation[2]), *positions)
        (keys, values, count), cache = remember((to_storage(k.astype(dtype)), to_storage(v.astype(dtype))))
        attended = attend(q, from_storage(keys), from_storage(values), dtype, count=count)
        by_self_attention = fill(self.self_attention.merge(attended) * gamma1[:, None])
        x_BNC += by_self_attention
        updates = [by_self_attention]
        if text_kv is not None:
            take, fill = choose(x_BNC, CROSS_ATTENTION)
            updates.append(fill(self._cross(take(x_BNC), text_kv, condition.mask_BT)))
            x_BNC += updates[-1]
        take, fill = choose(x_BNC, FEED_FORWARD)
        updates.append(fill(self.ffn(modulate(take(x_BNC), modulation[1], modulation[3])) * gamma2[:, None]))
        return x_BNC + updates[-1], cache, tuple(updates)

    def prefill(
        self,
        x_BNC: jax.Array,
        remember: Remember,
        text_kv: KeysValues | None,
        condition: Condition,
        scales: int,
    ) -> tuple[jax.Array, KeysValues]:
        """Runs the block on the first scales at once, whose tokens N are all known.

        Args:
          remember, text_kv: as of `step`.
          scales: how many.
        Returns:
          the residual stream float32 [B, N, C]; the cache that `remember` returned.
        """
        gamma1, gamma2, *modulation = self._modulation(condition)
        schedule, dtype = self.schedule.prefix(scales), self.config.compute_dtype
        positions = self._rotary_positions(0, schedule.length)
        q, k, v = self.self_attention.project(modulate(x_BNC, modulation[0], modulation[2]), *positions)
        _, cache = remember((to_storage(k.astype(dtype)), to_storage(v.astype(dtype))))
        attended = block_causal_attention(q, k, v, schedule, dtype)
        x_BNC += self.self_attention.merge(attended) * gamma1[:, None]
        if text_kv is not None:
            x_BNC += self._cross(x_BNC, text_kv, condition.mask_BT)
        x_BNC += self.ffn(modulate(x_BNC, modulation[1], modulation[3])) * gamma2[:, None]
        return constrain(x_BNC, "batch", None, None), cache

    def text_keys_values(self, context_BTC: jax.Array) -> KeysValues:
        """Computes keys and values of the text for the cross-attention, as `CrossAttention.keys_values` does."""
        return self.cross_attention.keys_values(context_BTC)

    def _rotary_positions(self, start: int, end: int) -> tuple[np.ndarray, ...]:
        """Takes the rows of the rotary tables for tokens `start` to `end`; () with learned positions."""
        if self.config.learned_schedule is not None:
            return ()
        return tuple(table_Ln[start:end] for table_Ln in rope_table(self.schedule, self.config.head_size))

    def _modulation(self, condition: Condition) -> list[jax.Array]:
        """Returns gamma1, gamma2, scale1, scale2, shift1, shift2, each float32 [B, C]."""
        if condition.adaln_B6C is not None:
            adaln_B6C = condition.adaln_B6C + self.adaln_table
        else:
            adaln_B6C = self.adaln(nn.silu(condition.vector_BC))
        return [adaln_B6C[:, i] for i in range(6)]

    def _cross(self, x_BLC: jax.Array, text_kv: KeysValues, mask_BT: Any) -> jax.Array:
        normed = _scaled_norm(x_BLC, self.cross_norm_scale, self.cross_norm_bias)
        return self.cross_attention(normed, text_kv, mask_BT)
