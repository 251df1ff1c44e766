"""The sampler: text features to pictures in one compiled program, scale by scale (docs/spec.md section 7).

`reference.py` is the same algorithm without anything that makes it fast: read it first. Here the keys and values of
earlier scales are cached (`kv_cache.py`), and options act through the hooks of `hooks.py`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from infinity_jax.checkpoints import trained
from infinity_jax.config import TransformerConfig
from infinity_jax.files.lazy_tensor import dtype_named
from infinity_jax.runtime.sharding import Layout, constrain
from infinity_jax.sampling import guidance, head_bits, kv_cache
from infinity_jax.sampling.bits import DrawSettings
from infinity_jax.sampling.config import SamplerConfig, SamplerInputs
from infinity_jax.sampling.given import blended, given_symbols, is_soft, kept, put_in
from infinity_jax.sampling.hooks import hooks_of
from infinity_jax.sampling.kv_cache import LayerCache, PartCache
from infinity_jax.sampling.prepared import Prepared, prepare
from infinity_jax.tokenizer import pyramid
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.transformer.block import Block
from infinity_jax.transformer.joined_maps import is_joined, joined
from infinity_jax.transformer.kernels.storage import to_storage
from infinity_jax.transformer.transformer import Transformer


class Drawn(NamedTuple):
    """A batch in symbols.

    Attributes:
      bits: of every scale drawn, bool [B,h_k,w_k,D]; or numbers of codes, int32 [B,h_k,w_k], or their shares.
      running_sum_BHWd: float32, the sum of their codes: what the tokenizer decodes.
    """

    bits: tuple[jax.Array, ...]
    running_sum_BHWd: jax.Array


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


@functools.lru_cache(maxsize=32)
def make_sampler(
    config: SamplerConfig, layout: Layout | None = None
) -> Callable[[Any, Any, SamplerInputs], UInt8[Array, "B H W 3"]]:
    """Makes the jitted (transformer parameters, tokenizer parameters, inputs) -> pictures uint8 [B,H,W,3].

    On a mesh (`layout`) each device draws its share of the batch; the pictures are then replicated.
    """

    def sample(params: Any, tokenizer_params: Any, inputs: SamplerInputs) -> jax.Array:
        quantizer = config.quantizer(tokenizer_params)
        drawn = draw(config, params, inputs, quantizer)
        codes_BHWd = constrain(drawn.running_sum_BHWd, "batch", None, None, None)
        image = Tokenizer(config.tokenizer).apply(
            {"params": tokenizer_params}, codes_BHWd, config.decoder_dtype, method="decode"
        )
        # Truncated, as the release does.
        return jnp.clip((jnp.asarray(image) + 1) / 2 * 255, 0, 255).astype(jnp.uint8)

    if layout is None:
        return jax.jit(sample, compiler_options=compiler_options())
    traced = layout.traced(sample)
    return jax.jit(traced, out_shardings=layout.replicated, compiler_options=compiler_options(layout))


def compiler_options(layout: Layout | None = None) -> dict[str, Any]:
    """Chooses what XLA is asked for when it compiles the sampler for a layout's devices, or for this process's."""
    device = jax.devices()[0] if layout is None else np.ravel(layout.mesh.devices)[0]
    if device.platform != "cpu":
        return {}
    # Else it orders work so that several layers could run at once, and holds the arrays of all: at 1024x1024 of the
    # 125M model 1.8 GB instead of 0.7, in the same time.
    return {"xla_cpu_enable_concurrency_optimized_scheduler": False}


def rounded(config: TransformerConfig, params: Any) -> Any:
    """Brings the transformer's parameters into the form that the sampler reads at every scale.

    What modules read as operands of products is rounded to their type, maps of one input are joined (`joined_maps`),
    and layers are split where they are not scanned (`kv_cache`). The sampler does it itself; who draws often does it
    once. The numbers are the same.
    """
    blocks = params["blocks"]
    if isinstance(blocks, list) or is_joined(blocks):  # in this form already
        return params

    def kept(x: jax.Array | np.ndarray, dtype: str) -> Any:
        return x if dtype == "float32" or x.dtype == jnp.uint16 else to_storage(x.astype(dtype_named(dtype)))

    params = jax.tree.map(kept, params, trained.stored_dtypes(config))
    return {**params, "blocks": kv_cache.split(config, joined(params["blocks"]))}


def draw(
    config: SamplerConfig, params: Any, inputs: SamplerInputs, quantizer: pyramid.Quantizer | None = None
) -> Drawn:
    """Draws all bits of a batch; traced inside jit.

    Args:
      params: the transformer's parameters, as trained or `rounded`.
      quantizer: the tokenizer's, see `model.quantizer_of`; of bits it need not be given.
    """
    params = rounded(config.model, params)
    prepared = prepare(config, params, inputs, quantizer)
    state = empty_state(config, len(inputs.seeds_B))
    all_bits = []
    for k in config.drawn_scales:
        bits_BhwD, state = draw_scale(config, params, inputs, prepared, state, k)
        all_bits.append(bits_BhwD)
    return Drawn(tuple(all_bits), state.running_sum_BHWd)


def empty_state(config: SamplerConfig, batch: int) -> SamplerState:
    """Returns the state before the first scale of `batch` pictures."""
    tokenizer = config.tokenizer
    size = config.schedule.times(tokenizer.patchify).last
    running_sum = constrain(jnp.zeros((batch, *size, tokenizer.bits), jnp.float32), "batch", None, None, None)
    last = config.drawn_scales[-1]
    caches = (
        kv_cache.empty(config.model, len(part), batch * config.rows, _cached(config, part, last))
        for part in hooks_of(config).tokens.parts
    )
    return SamplerState(running_sum, tuple(caches))


def _cached(config: SamplerConfig, part: range, k: int) -> int:
    """Counts the tokens that layers of a part have run before scale k."""
    tokens = hooks_of(config).tokens
    return sum(tokens.running(part, scale) for scale in config.drawn_scales if scale < k)


def draw_scale(
    config: SamplerConfig, params: Any, inputs: SamplerInputs, prepared: Prepared, state: SamplerState, k: int
) -> tuple[jax.Array, SamplerState]:
    """Draws the scale with number k: its symbols as of `Drawn`, and the state for the next one."""
    hooks, size, cfg_B = hooks_of(config), config.schedule.sizes[k], inputs.cfg_BK[:, k]
    quantizer, given, carried = prepared.quantizer, inputs.given, state.carried
    hidden_GBNC, caches = run_scale(config, params, prepared, state, cfg_B, k)
    own_Bhw = symbols_Bhw = None
    if given is not None and k < len(given.where):
        so_far = state.running_sum_BHWd, quantizer, config.tokenizer.patchify
        own_Bhw = symbols_Bhw = given_symbols(given, k, size, *so_far)
    if k >= config.given_scales:
        settings = DrawSettings(inputs.seeds_B, inputs.tau_BK[:, k], inputs.top_p_B, k)
        drawn_BN, carried = hooks.draw_bits(hidden_GBNC, prepared.head, cfg_B, settings, carried)
        symbols_Bhw = drawn_BN.reshape(len(drawn_BN), *size, *drawn_BN.shape[2:])
    assert symbols_Bhw is not None, "scales that are given whole need what is given"
    if given is None or own_Bhw is None:
        codes_BHWd = codes_of(config, quantizer, symbols_Bhw)
    else:
        likely = functools.partial(probabilities_of, config, prepared, hidden_GBNC, inputs, k)
        where_Bhw, drawn_Bhw = kept(given, k, likely), symbols_Bhw
        symbols_Bhw = put_in(own_Bhw, where_Bhw, drawn_Bhw)
        codes_BHWd = codes_of(config, quantizer, symbols_Bhw)
        if is_soft(where_Bhw):
            both = (codes_of(config, quantizer, symbols) for symbols in (own_Bhw, drawn_Bhw))
            codes_BHWd = blended(*both, where_Bhw)
    running_sum_BHWd = quantizer.add(state.running_sum_BHWd, codes_BHWd, k)
    return symbols_Bhw, SamplerState(running_sum_BHWd, caches, carried)


def probabilities_of(
    config: SamplerConfig, prepared: Prepared, hidden_GBNC: jax.Array, inputs: SamplerInputs, k: int
) -> Float[Array, "B h w D"]:
    """Computes how likely each bit of scale k is 1, from its hidden states."""
    rows = hidden_GBNC[:1] if config.mixed == "features" else hidden_GBNC
    numbers = inputs.cfg_BK[:, k], inputs.tau_BK[:, k]
    likely_BND = head_bits.probabilities(rows, prepared.head, *numbers)
    return likely_BND.reshape(len(likely_BND), *config.schedule.sizes[k], -1)


def codes_of(
    config: SamplerConfig, quantizer: pyramid.Quantizer, symbols_Bhw: jax.Array
) -> Float[Array, "B H W d"]:
    """Finds the codes of a scale's symbols, at the tokenizer's resolution."""
    if config.tokenizer.patchify > 1:
        symbols_Bhw = pyramid.to_tokenizer(symbols_Bhw, config.tokenizer.patchify)
    return quantizer.look_up(symbols_Bhw)


def run_scale(
    config: SamplerConfig,
    params: Any,
    prepared: Prepared,
    state: SamplerState,
    cfg_B: jax.Array,
    k: int,
) -> tuple[jax.Array, tuple[PartCache, ...]]:
    """Runs all layers on scale k: hidden states [G,B,N,C] before the head's norm, and the caches with this scale."""
    rows, features_BNd = hooks_of(config).rows_of_scale(k), None
    condition = rows.select(prepared.condition)
    if k > 0:
        so_far = prepared.quantizer, state.running_sum_BHWd
        features_BNd = rows.repeat(next_input(config, *so_far, config.schedule.sizes[k]))
    x_NLC: Any = Transformer(config.model).apply(
        {"params": params}, condition, features_BNd, k, method="embed"
    )
    x_NLC, caches = run_layers(config, params, prepared, state.caches, x_NLC, k, cfg_B)
    return guidance.separate(x_NLC, rows.running), caches


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
        remember = kv_cache.Span(_cached(config, part, k), rows, is_last).remember
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
