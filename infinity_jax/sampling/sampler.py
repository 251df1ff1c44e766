"""The sampler: text features to pictures in one compiled program, scale by scale (spec section 7)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from infinity_jax import patchify as patches
from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.model.block import Block, Condition
from infinity_jax.model.transformer import Transformer
from infinity_jax.sampling import bits, guidance
from infinity_jax.scales import ScaleSchedule
from infinity_jax.sharding import Layout, constrain, place
from infinity_jax.tokenizer import bsq, pyramid
from infinity_jax.tokenizer.model import Tokenizer

MIXED = ("logits", "features", "both", "none")


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """What is compiled; everything else is an argument, so that a new value does not compile again.

    Attributes:
      model, tokenizer: what draws.
      schedule: the transformer's.
      mixed: where the pictures with and without caption are mixed: "logits", "features", "both", or "none".
      feature_layers: the layers whose output is mixed; negative numbers count from the end.
    """

    model: TransformerConfig
    tokenizer: TokenizerConfig
    schedule: ScaleSchedule
    mixed: str = "logits"
    feature_layers: tuple[int, ...] = (-5,)

    def __post_init__(self):
        if self.mixed not in MIXED:
            raise UserError(f"unknown place of guidance {self.mixed!r}; use one of {', '.join(MIXED)}")
        if self.tokenizer.transformer_bits != self.model.bits:
            raise UserError(
                f"the tokenizer gives {self.tokenizer.transformer_bits} bits a token, "
                f"the transformer has {self.model.bits}; they must be trained together"
            )
        n = self.model.layers
        named = self.feature_layers and all(-n <= layer < n for layer in self.feature_layers)
        if self.mixes_features and not named:
            raise UserError(f"feature_layers {self.feature_layers} must name some of the model's {n} layers")

    @property
    def mixes_features(self) -> bool:
        """Whether the output of layers is mixed."""
        return self.mixed in ("features", "both")


class SamplerInputs(NamedTuple):
    """Arguments of one batch of B pictures.

    Attributes:
      text_BTC: float32 features of the prompts; mask_BT: bool, their tokens.
      negative_BTC, negative_mask_BT: features to steer away from; None = the learned empty caption.
      seeds_B: uint32, one per picture.
      cfg_K, tau_K: float32, guidance and temperature of each scale.
      top_p: float32 scalar.
    """

    text_BTC: jax.Array
    mask_BT: jax.Array
    seeds_B: jax.Array
    cfg_K: jax.Array
    tau_K: jax.Array
    top_p: jax.Array
    negative_BTC: jax.Array | None = None
    negative_mask_BT: jax.Array | None = None


def placed(inputs: SamplerInputs, layout: Layout) -> SamplerInputs:
    """The inputs laid out over a mesh: what belongs to one picture with its share of the batch, the rest everywhere."""
    share = layout.batch(len(inputs.seeds_B))
    of_all = ("cfg_K", "tau_K", "top_p")
    given = {name: x for name, x in inputs._asdict().items() if x is not None}
    return inputs._replace(
        **{name: place(x, layout.whole if name in of_all else share) for name, x in given.items()}
    )


@flax.struct.dataclass
class SamplerState:
    """What one scale hands to the next.

    Attributes:
      running_sum_BHWd: float32, the codes of all scales so far, resized to the last scale and summed.
      keys, values: float32 [layers,N,H,P,head]; N is B, or 2B with guidance (with caption, then without);
        P holds all scales but the last, whose keys and values nobody reads.
    """

    running_sum_BHWd: Float[Array, "B H W d"]
    keys: Float[Array, "layers N heads P head"]
    values: Float[Array, "layers N heads P head"]


class Drawn(NamedTuple):
    """A batch in bits: K arrays bool [B,h_k,w_k,D], K guided logits float32 [B,h_k*w_k,D,2], codes' sum [B,H,W,d]."""

    bits: tuple[jax.Array, ...]
    logits: tuple[jax.Array, ...]
    running_sum_BHWd: jax.Array


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
    return jax.jit(layout.traced(sample), out_shardings=layout.whole)


def draw(config: SamplerConfig, params, inputs: SamplerInputs) -> Drawn:
    """All bits of a batch; traced inside jit.

    Args:
      params: the transformer's parameters.
    """
    model, schedule = Transformer(config.model), config.schedule
    condition = _condition(config, params, inputs)
    text_kv = _text_keys_values(config, params, condition)
    state = _empty_state(config, len(inputs.seeds_B), len(condition.vector_BC))
    all_bits, all_logits = [], []
    for k, (h, w) in enumerate(schedule.sizes):
        features_BNd = None
        if k > 0:
            next_input = _next_input(config, state.running_sum_BHWd, (h, w))
            features_BNd = _both_halves(config, next_input.reshape(len(next_input), h * w, -1))
        x_NLC = model.apply({"params": params}, condition, features_BNd, k, method="embed")
        x_NLC, state = _blocks(
            config, params, jnp.asarray(x_NLC), state, text_kv, condition, k, inputs.cfg_K[k]
        )
        logits = _guided_logits(config, params, x_NLC, condition, inputs.cfg_K[k])
        drawn = bits.draw_bits(logits, inputs.seeds_B, k, inputs.tau_K[k], inputs.top_p)
        drawn_BhwD = drawn.reshape(len(drawn), h, w, -1)
        bits_BHWd = patches.to_tokenizer(drawn_BhwD, config.tokenizer.patchify)
        codes = bsq.to_codes(bits_BHWd, config.tokenizer.quantizer)
        state = state.replace(running_sum_BHWd=pyramid.add_codes(state.running_sum_BHWd, codes))  # pyright: ignore
        all_bits.append(drawn_BhwD)
        all_logits.append(logits)
    return Drawn(tuple(all_bits), tuple(all_logits), state.running_sum_BHWd)


def _next_input(config: SamplerConfig, running_sum_BHWd: jax.Array, size: tuple[int, int]) -> jax.Array:
    """What the transformer reads at the scale of `size`: float32 [B,h,w,D]."""
    side = config.tokenizer.patchify
    resized = pyramid.next_input(running_sum_BHWd, (size[0] * side, size[1] * side))
    return patches.to_transformer(resized, side)


def _both_halves(config: SamplerConfig, x: jax.Array) -> jax.Array:
    """The batch once for the caption and, with guidance, once more for its absence."""
    return x if config.mixed == "none" else jnp.concatenate([x, x])


def _condition(config: SamplerConfig, params, inputs: SamplerInputs) -> Condition:
    """What the blocks read of the text, for both halves."""
    model = Transformer(config.model)
    text, mask = inputs.text_BTC, inputs.mask_BT
    if config.mixed != "none":
        negative, negative_mask = inputs.negative_BTC, inputs.negative_mask_BT
        if negative is None or negative_mask is None:
            # The learned rows, as many as the prompt has tokens.
            empty_TC = model.apply({"params": params}, text.shape[1], method="empty_caption")
            negative, negative_mask = jnp.broadcast_to(jnp.asarray(empty_TC), text.shape), mask
        text, mask = jnp.concatenate([text, negative]), jnp.concatenate([mask, negative_mask])
    return model.apply({"params": params}, text, mask, method="text_condition")  # pyright: ignore


def _text_keys_values(config: SamplerConfig, params, condition: Condition):
    """Keys and values of the text for all layers, each [layers,N,H,T,head]: once for all scales."""
    block = Block(config.model, config.schedule)

    def layer(layer_params):
        return block.apply({"params": layer_params}, condition.context_BTC, method="text_keys_values")

    return jax.lax.map(layer, params["blocks"])


def _empty_state(config: SamplerConfig, batch: int, rows: int) -> SamplerState:
    model, tokenizer, schedule = config.model, config.tokenizer, config.schedule
    cached = schedule.offsets[-2]
    cache = jnp.zeros((model.layers, rows, model.heads, cached, model.head_size), jnp.float32)
    cache = constrain(cache, "layers", "batch", "attention_heads", None, None)
    running_sum = jnp.zeros((batch, *schedule.times(tokenizer.patchify).last, tokenizer.bits), jnp.float32)
    return SamplerState(constrain(running_sum, "batch", None, None, None), cache, cache)


def _blocks(
    config: SamplerConfig, params, x_NLC, state: SamplerState, text_kv, condition: Condition, k: int, cfg
):
    """All layers on the tokens of scale k: the residual stream [N,h_k*w_k,C], and the state with their cache."""
    start, end = config.schedule.offsets[k : k + 2]
    block = Block(config.model, config.schedule)
    mixed_layers = jnp.array([layer % config.model.layers for layer in config.feature_layers])
    is_last = k + 1 == config.schedule.n_scales

    def layer(x_NLC, per_layer):
        number, layer_params, keys, values, layer_text_kv = per_layer
        past = keys[:, :, :start], values[:, :, :start]
        x_NLC, (new_keys, new_values) = block.apply(  # pyright: ignore
            {"params": layer_params}, x_NLC, past, layer_text_kv, condition, k, method="step"
        )
        if config.mixes_features:
            mixed = _both_halves(config, guidance.mix(*jnp.split(x_NLC, 2), cfg))
            # A scale with cfg 1 leaves the half without caption as it is, for the sake of later scales.
            x_NLC = jnp.where((number == mixed_layers).any() & (cfg != 1), mixed, x_NLC)
        if is_last:
            return x_NLC, None
        return x_NLC, (keys.at[:, :, start:end].set(new_keys), values.at[:, :, start:end].set(new_values))

    numbers = jnp.arange(config.model.layers)
    per_layer = (numbers, params["blocks"], state.keys, state.values, text_kv)
    x_NLC, cache = jax.lax.scan(layer, x_NLC, per_layer)
    if is_last:
        return x_NLC, state
    return x_NLC, state.replace(keys=cache[0], values=cache[1])  # pyright: ignore


def _guided_logits(
    config: SamplerConfig, params, x_NLC, condition: Condition, cfg
) -> Float[Array, "B N d 2"]:
    """Bit logits of the batch: of the conditional half alone, or mixed."""
    logits = Transformer(config.model).apply({"params": params}, x_NLC, condition, method="head")
    if config.mixed == "none":
        return jnp.asarray(logits)
    conditional, unconditional = jnp.split(jnp.asarray(logits), 2)
    # With mixed features both halves carry the same stream; the caption's own half is read.
    return conditional if config.mixed == "features" else guidance.mix(conditional, unconditional, cfg)
