"""Prompt to prompt: which bits of a picture another prompt would have drawn otherwise (AREdit, arXiv 2503.23897).

The picture's own bits are run through the transformer with the prompt that describes it, once. Then it is drawn from
the new prompt: where the probability of a bit has changed by more than a threshold, the bit is drawn, by the picture's
numbered random numbers, and else the picture's own is kept (`given.kept`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from infinity_jax.errors import UserError
from infinity_jax.runtime.sharding import Layout
from infinity_jax.sampling.config import SamplerConfig, SamplerInputs
from infinity_jax.sampling.given import given_symbols
from infinity_jax.sampling.prepared import prepare
from infinity_jax.sampling.sampler import compiler_options, empty_state, rounded
from infinity_jax.sampling.scale_pass import SamplerState, codes_of, probabilities_of, run_scale

Probabilities = tuple[Float[Array, "B _ _ D"], ...]


@functools.lru_cache(maxsize=32)
def make_probabilities(
    config: SamplerConfig, layout: Layout | None = None
) -> Callable[[Any, Any, SamplerInputs], Probabilities]:
    """Makes the jitted (transformer parameters, tokenizer parameters, inputs) -> the probability of each bit to be 1.

    What is given counts, whole; options that save work are left out. Of each scale it is float32 [B,h_k,w_k,D], after
    guidance and temperature; with temperature 0 it is 0 or 1.

    Raises:
      UserError: the transformer does not draw bits.
    """
    if config.model.head != "bits":
        raise UserError(
            f"prompt-to-prompt edits compare bits, and this transformer's head is {config.model.head!r}; edit by a "
            "mask or by strength"
        )
    config = dataclasses.replace(config, unguided_scales=(), reuse_guidance=False, pruning=None)

    def probabilities(params: Any, tokenizer_params: Any, inputs: SamplerInputs) -> Probabilities:
        return _probabilities(config, params, inputs)

    if layout is None:
        return jax.jit(probabilities, compiler_options=compiler_options())
    traced = layout.traced(probabilities)
    return jax.jit(traced, out_shardings=layout.replicated, compiler_options=compiler_options(layout))


def _probabilities(config: SamplerConfig, params: Any, inputs: SamplerInputs) -> Probabilities:
    params, given = rounded(config.model, params), inputs.given
    assert given is not None, "nothing is given"
    prepared, state = prepare(config, params, inputs), empty_state(config, len(inputs.seeds_B))
    found = []
    for k, size in enumerate(config.schedule.sizes):
        hidden_GBNC, caches = run_scale(config, params, prepared, state, inputs.cfg_BK[:, k], k)
        found.append(probabilities_of(config, prepared, hidden_GBNC, inputs, k))
        so_far = state.running_sum_BHWd, prepared.quantizer, config.tokenizer.patchify
        codes_BHWd = codes_of(config, prepared.quantizer, given_symbols(given, k, size, *so_far))
        running_sum_BHWd = prepared.quantizer.add(state.running_sum_BHWd, codes_BHWd, k)
        state = SamplerState(running_sum_BHWd, caches, None)
    return tuple(found)
