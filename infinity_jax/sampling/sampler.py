"""The sampler: text features to pictures in one compiled program, scale by scale (spec section 7)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from infinity_jax.config import TransformerConfig
from infinity_jax.runtime.sharding import Layout, constrain
from infinity_jax.sampling import bits, guidance, head_bits, head_index
from infinity_jax.sampling.config import SamplerConfig, SamplerInputs
from infinity_jax.tokenizer import bsq, pyramid, resize
from infinity_jax.tokenizer import pyramid as patches
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.transformer.block import Block, Condition, KeysValues
from infinity_jax.transformer.kernels.storage import from_storage, to_storage
from infinity_jax.transformer.transformer import Transformer


class Drawn(NamedTuple):
    """A batch in bits: of every scale drawn bool [B,h_k,w_k,D], and the sum of their codes float32 [B,H,W,d]."""

    bits: tuple[jax.Array, ...]
    running_sum_BHWd: jax.Array


class Prepared(NamedTuple):
    """What all scales read of the text and the parameters.

    Attributes:
      condition: of N rows, a picture's halves side by side.
      text_kv: keys and values of the text for all layers, each [layers,N,H,T,head], in storage form.
      head: the last step from hidden states to bits, or to indices.
    """

    condition: Condition
    text_kv: KeysValues
    head: head_bits.DifferenceHead | head_index.IndexLogits


@flax.struct.dataclass
class SamplerState:
    """What one scale hands to the next.

    Attributes:
      running_sum_BHWd: float32, the codes of all scales so far, resized to the last scale and summed.
      cache: for each of `SamplerConfig.layer_parts` the keys and values of each scale so far, each
        [layers,N,H,h_k*w_k,head] (of a pruned scale only the tokens that ran) in the type of the attention's operands,
        in storage form; the last scale's, which nobody reads, are not kept. N is B, or 2B with guidance: a picture's
        halves side by side.
      caption_effect_BhwD: float32, what the caption changed in each bit's logit at the last guided scale; only where
        that is used again.
      updates: what the three sub-layers of each pruning layer added at the last scale that fills later ones, each
        [layers,N,n,C] in the type of the products' operands, in storage form.
    """

    running_sum_BHWd: Float[Array, "B H W d"]
    cache: tuple[tuple[KeysValues, ...], ...]
    caption_effect_BhwD: jax.Array | None = None
    updates: tuple[jax.Array, ...] | None = None


@functools.lru_cache(maxsize=32)
def make_sampler(
    config: SamplerConfig, layout: Layout | None = None
) -> Callable[[Any, Any, SamplerInputs], UInt8[Array, "B H W 3"]]:
    """The jitted (transformer parameters, tokenizer parameters, inputs) -> pictures uint8 [B,H,W,3].

    On a mesh (`layout`) each device draws its share of the batch; the pictures then lie whole on every device.
    """

    def sample(params, tokenizer_params, inputs: SamplerInputs):
        codes_BHWd = constrain(draw(config, params, inputs).running_sum_BHWd, "batch", None, None, None)
        image = Tokenizer(config.tokenizer).apply({"params": tokenizer_params}, codes_BHWd, method="decode")
        return jnp.clip((jnp.asarray(image) + 1) / 2 * 255, 0, 255).astype(
            jnp.uint8
        )  # truncated, as the release does

    if layout is None:
        return jax.jit(sample)
    return jax.jit(layout.traced(sample), out_shardings=layout.replicated)


def rounded(config: TransformerConfig, params: Any) -> Any:
    """The transformer's parameters with the blocks' kernels in the type of the products' operands, as they are kept.

    The sampler reads them once a scale. It rounds them itself; who draws often does it once. The numbers are the same.
    """

    def of_block(path, x):
        is_rounded = path[-1].key != "kernel" or x.dtype == jnp.uint16
        return x if is_rounded else to_storage(x.astype(config.compute_dtype))

    return {**params, "blocks": jax.tree_util.tree_map_with_path(of_block, params["blocks"])}


def draw(config: SamplerConfig, params, inputs: SamplerInputs) -> Drawn:
    """All bits of a batch; traced inside jit.

    Args:
      params: the transformer's parameters, as trained or `rounded`.
    """
    params = rounded(config.model, params)
    prepared, state = prepare(config, params, inputs), empty_state(config, len(inputs.seeds_B))
    all_bits = []
    for k in config.drawn_scales:
        bits_BhwD, state = draw_scale(config, params, inputs, prepared, state, k)
        all_bits.append(bits_BhwD)
    return Drawn(tuple(all_bits), state.running_sum_BHWd)


def prepare(config: SamplerConfig, params, inputs: SamplerInputs) -> Prepared:
    """All work on the text, once for all scales."""
    model, block = Transformer(config.model), Block(config.model, config.schedule)
    halves = [(inputs.text_BTC, inputs.mask_BT)]
    if config.halves == 2:
        negative, negative_mask = inputs.negative_BTC, inputs.negative_mask_BT
        if negative is None or negative_mask is None:
            # The learned rows, as many as the prompt has tokens: one text for all pictures.
            empty_TC = model.apply({"params": params}, inputs.text_BTC.shape[1], method="empty_caption")
            negative, negative_mask = jnp.asarray(empty_TC)[None], inputs.mask_BT
        halves.append((negative, negative_mask))
    conditions: list[Any] = [
        model.apply({"params": params}, text, mask, method="text_condition") for text, mask in halves
    ]
    vectors_NC = jnp.concatenate([condition.vector_BC for condition in conditions])
    head_of = head_bits.difference_head if config.model.head == "bits" else head_index.index_logits
    head = head_of(config.model, params, vectors_NC, config.halves)

    def text_kv(layer_params):
        layer_params = jax.tree.map(from_storage, layer_params)
        each = [
            block.apply({"params": layer_params}, condition.context_BTC, method="text_keys_values")
            for condition in conditions
        ]
        both = jax.tree.map(guidance.side_by_side, *each)
        return jax.tree.map(lambda x: to_storage(x.astype(config.model.compute_dtype)), both)

    kv = jax.lax.map(text_kv, params["blocks"])
    return Prepared(jax.tree.map(guidance.side_by_side, *conditions), kv, head)


def empty_state(config: SamplerConfig, batch: int) -> SamplerState:
    """The state before the first scale of `batch` pictures."""
    tokenizer = config.tokenizer
    size = config.schedule.times(tokenizer.patchify).last
    running_sum = jnp.zeros((batch, *size, tokenizer.bits), jnp.float32)
    cache = ((),) * len(config.layer_parts)
    return SamplerState(constrain(running_sum, "batch", None, None, None), cache)


def draw_scale(
    config: SamplerConfig, params, inputs: SamplerInputs, prepared: Prepared, state: SamplerState, k: int
) -> tuple[jax.Array, SamplerState]:
    """Bits bool [B,h_k,w_k,D] of the scale with number k, and the state for the next one."""
    size = config.schedule.sizes[k]
    if config.halves == 2 and not config.guided(k):
        prepared = prepared._replace(
            condition=jax.tree.map(guidance.with_caption, prepared.condition),
            text_kv=jax.tree.map(lambda x: jax.vmap(guidance.with_caption)(x), prepared.text_kv),
        )
    features_BNd = None
    if k > 0:
        features_BNd = _next_input(config, state.running_sum_BHWd, size)
        if config.guided(k):
            features_BNd = guidance.side_by_side(features_BNd, features_BNd)
    x_NLC = Transformer(config.model).apply(
        {"params": params}, prepared.condition, features_BNd, k, method="embed"
    )
    x_NLC, cache, updates = _layers(config, params, jnp.asarray(x_NLC), state, prepared, k, inputs.cfg_K[k])
    hidden_GBNC = guidance.halves_first(x_NLC, 2 if config.guided(k) else 1)
    drawn, effect = _bits(config, hidden_GBNC, prepared.head, inputs, state.caption_effect_BhwD, k)
    bits_BhwD = drawn.reshape(len(drawn), *size, -1)
    bits_BHWd = patches.to_tokenizer(bits_BhwD, config.tokenizer.patchify)
    running_sum = pyramid.add_codes(
        state.running_sum_BHWd, bsq.to_codes(bits_BHWd, config.tokenizer.quantizer)
    )
    return bits_BhwD, SamplerState(running_sum, cache, effect, updates)


def _next_input(config: SamplerConfig, running_sum_BHWd: jax.Array, size: tuple[int, int]) -> jax.Array:
    """What the transformer reads at the scale of `size`: float32 [B,h*w,D]."""
    side = config.tokenizer.patchify
    resized = pyramid.next_input(running_sum_BHWd, (size[0] * side, size[1] * side))
    return patches.to_transformer(resized, side).reshape(len(resized), size[0] * size[1], -1)


def _layers(config: SamplerConfig, params, x_NLC, state: SamplerState, prepared: Prepared, k: int, cfg):
    """All layers on the tokens of scale k: the residual stream [N,h_k*w_k,C], and the state's cache and updates."""
    cache, updates = [], state.updates
    for numbers, past in zip(config.layer_parts, state.cache, strict=True):
        filling = updates if numbers == config.pruning_layers and config.prunes(k) else None
        x_NLC, new, made = _some_layers(config, params, x_NLC, (numbers, past, filling), prepared, k, cfg)
        cache.append(past if k == config.drawn_scales[-1] else (*past, new))
        updates = made or updates
    return x_NLC, tuple(cache), updates


def _some_layers(config: SamplerConfig, params, x_NLC, of_layers: tuple, prepared: Prepared, k: int, cfg):
    """The layers with some numbers; also the keys and values and the updates of each that later scales read."""
    block = Block(config.model, config.schedule)
    mixed_layers = jnp.array([layer % config.model.layers for layer in config.feature_layers])
    numbers, past, filling = of_layers
    is_last, fills = k == config.drawn_scales[-1], numbers == config.pruning_layers and config.fills(k)
    caption_alone = config.halves == 2 and not config.guided(k)

    def layer(x_NLC, per_layer):
        number, past, filling = per_layer
        # Picked by number: so layers in several parts need no copy of their parameters.
        layer_params, text_kv = jax.tree.map(
            lambda x: from_storage(
                jax.lax.dynamic_index_in_dim(x, number, keepdims=False, allow_negative_indices=False)
            ),
            (params["blocks"], prepared.text_kv),
        )
        if caption_alone:
            past, filling = jax.tree.map(guidance.with_caption, (past, filling))
        arguments = (past, text_kv, prepared.condition, k, config.token_choice(k, filling))
        result: Any = block.apply({"params": layer_params}, x_NLC, *arguments, method="step")
        x_NLC, keys_values, updates = result
        if config.mixes_features and config.guided(k):
            conditional, unconditional = guidance.halves_first(x_NLC, 2)
            mixed = guidance.mix(conditional, unconditional, cfg)
            # A scale with cfg 1 leaves the half without caption as it is, for the sake of later scales.
            is_mixed = (number == mixed_layers).any() & (cfg != 1)
            x_NLC = jnp.where(is_mixed, guidance.side_by_side(mixed, mixed), x_NLC)
        kept = (
            None if is_last else keys_values,
            tuple(to_storage(x.astype(config.model.compute_dtype)) for x in updates) if fills else None,
        )
        if caption_alone:
            kept = jax.tree.map(lambda x: guidance.side_by_side(x, x), kept)
        return x_NLC, kept

    unroll = 1 if config.scan_layers else len(numbers)
    x_NLC, (keys_values, updates) = jax.lax.scan(
        layer, x_NLC, (jnp.array(numbers), past, filling), unroll=unroll
    )
    return x_NLC, keys_values, updates


def _bits(config: SamplerConfig, hidden_GBNC, head, inputs: SamplerInputs, effect, k: int):
    """Bits bool [B,N,D] of scale k, and the caption's effect on their logits where later scales use it."""
    if config.mixed == "features":
        # With mixed features both halves carry the same stream; the caption's own half is read.
        hidden_GBNC = hidden_GBNC[:1]
    cfg, settings = inputs.cfg_K[k], (inputs.seeds_B, k, inputs.tau_K[k], inputs.top_p)
    if config.model.head == "index":
        return head_index.draw_indices(hidden_GBNC, head, cfg, *settings), None
    if not config.reuse_guidance:
        return head_bits.draw_head_bits(hidden_GBNC, head, cfg, *settings), None
    size = config.schedule.sizes[k]
    difference_BND = head_bits.logit_difference(hidden_GBNC[:1], head, cfg)
    if config.guided(k):
        without_BND = head_bits.logit_difference(hidden_GBNC, head, jnp.float32(0))
        effect = (difference_BND - without_BND).reshape(len(difference_BND), *size, -1)
    else:
        effect = resize.bilinear(effect, size)
    guided_BND = difference_BND + (cfg - 1) * effect.reshape(difference_BND.shape)
    return bits.draw_bits(guided_BND, *settings), effect
