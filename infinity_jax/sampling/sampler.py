"""The sampler: text features to pictures in one compiled program, scale by scale (docs/spec.md section 7).

`reference.py` is the same algorithm without anything that makes it fast: read it first. Here the keys and values of
earlier scales are cached (`kv_cache.py`), and options act through the hooks of `hooks.py`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from infinity_jax.checkpoints import trained
from infinity_jax.config import TransformerConfig
from infinity_jax.files.lazy_tensor import dtype_named
from infinity_jax.runtime.sharding import Layout, constrain
from infinity_jax.sampling import kv_cache
from infinity_jax.sampling.bits import DrawSettings
from infinity_jax.sampling.config import SamplerConfig, SamplerInputs
from infinity_jax.sampling.given import blended, given_symbols, is_soft, kept, put_in
from infinity_jax.sampling.hooks import hooks_of
from infinity_jax.sampling.prefill import can_prefill, prefill
from infinity_jax.sampling.prepared import Prepared, prepare
from infinity_jax.sampling.scale_pass import SamplerState, cached, codes_of, probabilities_of, run_scale
from infinity_jax.tokenizer import pyramid
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.transformer.joined_maps import is_joined, joined
from infinity_jax.transformer.kernels.storage import to_storage


class Drawn(NamedTuple):
    """A batch in symbols.

    Attributes:
      bits: of every scale drawn, bool [B,h_k,w_k,D]; or numbers of codes, int32 [B,h_k,w_k], or their shares.
      running_sum_BHWd: float32, the sum of their codes: what the tokenizer decodes.
    """

    bits: tuple[jax.Array, ...]
    running_sum_BHWd: jax.Array


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
        return pictures_of(config, tokenizer_params, drawn.running_sum_BHWd)

    if layout is None:
        return jax.jit(sample, compiler_options=compiler_options())
    traced = layout.traced(sample)
    return jax.jit(traced, out_shardings=layout.replicated, compiler_options=compiler_options(layout))


def pictures_of(
    config: SamplerConfig, tokenizer_params: Any, codes_BHWd: Float[Array, "B h w d"]
) -> UInt8[Array, "B H W 3"]:
    """Decodes a sum of codes to pictures."""
    codes_BHWd = constrain(codes_BHWd, "batch", None, None, None)
    image = Tokenizer(config.tokenizer).apply(
        {"params": tokenizer_params}, codes_BHWd, config.decoder_dtype, method="decode"
    )
    # Truncated, as the release does.
    return jnp.clip((jnp.asarray(image) + 1) / 2 * 255, 0, 255).astype(jnp.uint8)


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
    all_bits: list[jax.Array] = []
    if can_prefill(config):
        all_bits, state = prefill(config, params, inputs, prepared, state)
    for k in config.drawn_scales[len(all_bits) :]:
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
        kv_cache.empty(config.model, len(part), batch * config.rows, cached(config, part, last))
        for part in hooks_of(config).tokens.parts
    )
    return SamplerState(running_sum, tuple(caches))


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
            own_BHWd, drawn_BHWd = (codes_of(config, quantizer, x) for x in (own_Bhw, drawn_Bhw))
            codes_BHWd = blended(own_BHWd, drawn_BHWd, where_Bhw)
    running_sum_BHWd = quantizer.add(state.running_sum_BHWd, codes_BHWd, k)
    return symbols_Bhw, SamplerState(running_sum_BHWd, caches, carried)
