"""Scales that are given whole, in one pass: all their inputs are known, so that no scale waits for the one before."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from infinity_jax.sampling import kv_cache
from infinity_jax.sampling.config import SamplerConfig, SamplerInputs
from infinity_jax.sampling.given import given_symbols
from infinity_jax.sampling.hooks import hooks_of
from infinity_jax.sampling.kv_cache import LayerCache
from infinity_jax.sampling.prepared import Prepared
from infinity_jax.sampling.scale_pass import SamplerState, codes_of, embedded
from infinity_jax.transformer.block import Block


def can_prefill(config: SamplerConfig) -> bool:
    """Tells whether the given scales run at once: several, of which every row and token runs, mixed in no layer."""
    given = range(config.given_scales)
    alone = (
        config.mixes_features or config.pruning is not None or any(k in given for k in config.unguided_scales)
    )
    return len(given) > 1 and not alone


def prefill(
    config: SamplerConfig, params: Any, inputs: SamplerInputs, prepared: Prepared, state: SamplerState
) -> tuple[list[jax.Array], SamplerState]:
    """Runs the given scales through the layers: their symbols, and the state for the first one that is drawn.

    Attention is block-causal, as in training; the numbers are those of one scale after the other but for rounding.
    """
    given, quantizer = inputs.given, prepared.quantizer
    assert given is not None, "scales that are given whole need what is given"
    running_sum_BHWd, all_symbols, parts = state.running_sum_BHWd, [], []
    for k, size in enumerate(config.schedule.sizes[: config.given_scales]):
        parts.append(embedded(config, params, prepared, running_sum_BHWd, k))
        so_far = running_sum_BHWd, quantizer, config.tokenizer.patchify
        all_symbols.append(given_symbols(given, k, size, *so_far))
        codes_BHWd = codes_of(config, quantizer, all_symbols[-1])
        running_sum_BHWd = quantizer.add(running_sum_BHWd, codes_BHWd, k)
    block, rows = Block(config.model, config.schedule), hooks_of(config).rows_of_scale(0)
    span = kv_cache.Span(0, rows, is_last=False)

    # Jitted, so that it is traced once for all layers.
    @jax.jit
    def step(place: Any, weights: Any, text_kv: Any, x_NLC: Any, cache: LayerCache) -> Any:
        remember = functools.partial(span.remember, cache.past, place)
        of_layer = x_NLC, remember, text_kv, prepared.condition, config.given_scales
        result: Any = block.apply({"params": weights}, *of_layer, method="prefill")
        x_NLC, past = result
        return x_NLC, LayerCache(past, cache.updates)

    def layer(x_NLC: jax.Array, number: Any, place: Any, cache: LayerCache) -> tuple[jax.Array, LayerCache]:
        weights = kv_cache.pick(params["blocks"], number)
        text_kv = None if prepared.text_kv is None else kv_cache.pick(prepared.text_kv, number)
        return step(place, weights, text_kv, x_NLC, cache)

    x_NLC, later = jnp.concatenate(parts, 1), []
    for part, cache in zip(hooks_of(config).tokens.parts, state.caches, strict=True):
        x_NLC, cache = kv_cache.run(layer, part, x_NLC, cache)
        later.append(cache)
    return all_symbols, SamplerState(running_sum_BHWd, tuple(later), state.carried)
