"""One scale through all layers: from the running sum to hidden states, beside the cached keys and values of others."""

import functools
from typing import Any

import flax.struct
import jax
from jaxtyping import Array, Float

from infinity_jax.sampling import guidance, head_bits, kv_cache
from infinity_jax.sampling.config import SamplerConfig, SamplerInputs
from infinity_jax.sampling.hooks import hooks_of
from infinity_jax.sampling.kv_cache import LayerCache, PartCache
from infinity_jax.sampling.prepared import Prepared
from infinity_jax.tokenizer import pyramid
from infinity_jax.transformer.block import Block
from infinity_jax.transformer.transformer import Transformer


@flax.struct.dataclass
class SamplerState:
    """What one scale hands to the next.

    Attributes:
      running_sum_BHWd: float32, the codes of all scales so far, resized to the last scale and summed.
      caches: of each part of the layers, in the order of `Hooks.tokens.parts`.
      carried: what `Hooks.draw_bits` hands on, if anything.
    """

    running_sum_BHWd: Float[Array, "B H W d"]
    caches: tuple[PartCache, ...]
    carried: jax.Array | None = None


def cached(config: SamplerConfig, part: range, k: int) -> int:
    """Counts the tokens that layers of a part have run before scale k."""
    tokens = hooks_of(config).tokens
    return sum(tokens.running(part, scale) for scale in config.drawn_scales if scale < k)


def run_scale(
    config: SamplerConfig,
    params: Any,
    prepared: Prepared,
    state: SamplerState,
    cfg_B: jax.Array,
    k: int,
) -> tuple[jax.Array, tuple[PartCache, ...]]:
    """Runs all layers on scale k: hidden states [G,B,N,C] before the head's norm, and the caches with this scale."""
    rows = hooks_of(config).rows_of_scale(k)
    x_NLC = embedded(config, params, prepared, state.running_sum_BHWd, k)
    x_NLC, caches = run_layers(config, params, prepared, state.caches, x_NLC, k, cfg_B)
    return guidance.separate(x_NLC, rows.running), caches


def embedded(
    config: SamplerConfig, params: Any, prepared: Prepared, running_sum_BHWd: jax.Array, k: int
) -> Float[Array, "N n C"]:
    """Makes what the layers read at scale k of the running sum: the residual stream [N,h_k*w_k,C]."""
    rows, features_BNd = hooks_of(config).rows_of_scale(k), None
    if k > 0:
        so_far = prepared.quantizer, running_sum_BHWd
        features_BNd = rows.repeat(next_input(config, *so_far, config.schedule.sizes[k]))
    inputs: Any = rows.select(prepared.condition), features_BNd, k
    embed: Any = Transformer(config.model).apply
    return embed({"params": params}, *inputs, method="embed")


def next_input(
    config: SamplerConfig,
    quantizer: pyramid.Quantizer,
    running_sum_BHWd: Float[Array, "B H W d"],
    size: tuple[int, int],
) -> Float[Array, "B N D"]:
    """Brings the running sum to what the transformer reads at the scale of `size`: float32 [B,h*w,D]."""
    side = config.tokenizer.patchify
    resized = quantizer.next_input(running_sum_BHWd, (size[0] * side, size[1] * side))
    return pyramid.to_transformer(resized, side).reshape(len(resized), size[0] * size[1], -1)


def codes_of(
    config: SamplerConfig, quantizer: pyramid.Quantizer, symbols_Bhw: jax.Array
) -> Float[Array, "B H W d"]:
    """Finds the codes of a scale's symbols, at the tokenizer's resolution."""
    if config.tokenizer.patchify > 1:
        symbols_Bhw = pyramid.to_tokenizer(symbols_Bhw, config.tokenizer.patchify)
    return quantizer.look_up(symbols_Bhw)


def probabilities_of(
    config: SamplerConfig, prepared: Prepared, hidden_GBNC: jax.Array, inputs: SamplerInputs, k: int
) -> Float[Array, "B h w D"]:
    """Computes how likely each bit of scale k is 1, from its hidden states."""
    rows = hidden_GBNC[:1] if config.mixed == "features" else hidden_GBNC
    numbers = inputs.cfg_BK[:, k], inputs.tau_BK[:, k]
    likely_BND = head_bits.probabilities(rows, prepared.head, *numbers)
    return likely_BND.reshape(len(likely_BND), *config.schedule.sizes[k], -1)


def run_layers(
    config: SamplerConfig,
    params: Any,
    prepared: Prepared,
    caches: tuple[PartCache, ...],
    x_NLC: jax.Array,
    k: int,
    cfg_B: jax.Array,
) -> tuple[jax.Array, tuple[PartCache, ...]]:
    """Runs all layers on the residual stream [N,h_k*w_k,C] of scale k; returns it after them, and the caches with k."""
    hooks, block = hooks_of(config), Block(config.model, config.schedule)
    rows, is_last = hooks.rows_of_scale(k), k == config.drawn_scales[-1]
    condition = rows.select(prepared.condition)

    # Jitted, so that it is traced once for all layers of a part.
    @functools.partial(jax.jit, static_argnums=0)
    def step(part: range, place: Any, weights: Any, text_kv: Any, x_NLC: Any, cache: LayerCache) -> Any:
        remember = kv_cache.Span(cached(config, part, k), rows, is_last).remember
        choose = hooks.tokens.choose(part, k, rows.select(cache.updates))
        inputs = x_NLC, functools.partial(remember, cache.past, place), rows.select(text_kv), condition
        result: Any = block.apply({"params": weights}, *inputs, k, choose, method="step")
        x_NLC, past, updates = result
        kept = hooks.tokens.keep(part, k, updates)
        return x_NLC, LayerCache(past, None if is_last else rows.restore(kept))

    def layer(
        part: range, x_NLC: jax.Array, number: Any, place: Any, cache: LayerCache
    ) -> tuple[jax.Array, LayerCache]:
        weights = kv_cache.pick(params["blocks"], number)
        text_kv = None if prepared.text_kv is None else kv_cache.pick(prepared.text_kv, number)
        x_NLC, cache = step(part, place, weights, text_kv, x_NLC, cache)
        return hooks.guide_features(x_NLC, number, rows, cfg_B), cache

    later = []
    for part, cache in zip(hooks.tokens.parts, caches, strict=True):
        x_NLC, cache = kv_cache.run(functools.partial(layer, part), part, x_NLC, cache)
        later.append(cache)
    return x_NLC, tuple(later)
