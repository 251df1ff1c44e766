"""The sampler in its plainest form: what `sampler.py` draws, without anything that makes it fast.

Infinity draws a picture from coarse to fine (paper section 3.1; docs/spec.md section 7). At each scale

1. the sum of the codes so far, resized to the scale, is what the transformer reads beside the text;
2. the transformer gives two logits for each bit of each token, all bits of a scale at once;
3. guidance mixes the logits with the caption and without: cfg * conditional + (1 - cfg) * unconditional;
4. each bit is drawn by itself, at temperature tau, from random numbers that its picture's seed numbers;
5. the codes of the bits, resized to the last scale, are added to the sum, which the tokenizer decodes in the end.

No cache, no compilation, no options: every scale runs the whole sequence again, through the model that is trained.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from infinity_jax.sampling.bits import DrawSettings, draw_bits
from infinity_jax.sampling.config import SamplerConfig, SamplerInputs
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import pyramid
from infinity_jax.tokenizer.bsq import BinaryQuantizer
from infinity_jax.transformer.transformer import Transformer


def sample_bits(
    config: SamplerConfig, params: Any, inputs: SamplerInputs
) -> tuple[list[jax.Array], Float[Array, "B H W d"]]:
    """Draws the bits of all scales, bool [B,h_k,w_k,D] each; returns them and the sum of their codes.

    Args:
      config: models, schedule, and `mixed` "logits" or "none"; its other fields are not read.
      params: the transformer's parameters, as trained.
      inputs: text, seeds, cfg, tau and top_p; the unconditional text is the learned empty caption.
    """
    batch, schedule, side = len(inputs.seeds_B), config.schedule, config.tokenizer.patchify
    quantizer = BinaryQuantizer(config.tokenizer.quantizer)
    running_sum_BHWd = jnp.zeros((batch, *schedule.times(side).last, config.tokenizer.bits))
    read_BLD, all_bits = jnp.zeros((batch, 0, config.model.bits)), []
    for k, (height, width) in enumerate(schedule.sizes):
        if k > 0:
            resized = quantizer.next_input(running_sum_BHWd, (height * side, width * side))
            read_BND = pyramid.to_transformer(resized, side).reshape(batch, height * width, -1)
            read_BLD = jnp.concatenate([read_BLD, read_BND], 1)
        difference_BLD = logit_differences(config, params, inputs, read_BLD, schedule.prefix(k + 1), k)
        settings = DrawSettings(inputs.seeds_B, inputs.tau_BK[:, k], inputs.top_p_B, k)
        bits_BND = draw_bits(difference_BLD[:, schedule.offsets[k] :], settings)
        all_bits.append(bits_BND.reshape(batch, height, width, -1))
        codes_BhwD = quantizer.look_up(pyramid.to_tokenizer(all_bits[-1], side))
        running_sum_BHWd = quantizer.add(running_sum_BHWd, codes_BhwD, k)
    return all_bits, running_sum_BHWd


def logit_differences(
    config: SamplerConfig,
    params: Any,
    inputs: SamplerInputs,
    read_BLD: Float[Array, "B L_minus_1 D"],
    so_far: ScaleSchedule,
    k: int,
) -> Float[Array, "B L D"]:
    """Returns logit of 1 minus logit of 0 of all bits of scales 0 to k, after guidance with the cfg of scale k."""

    def logits(is_empty: bool) -> jax.Array:
        drop_B = jnp.full(len(inputs.seeds_B), is_empty)
        text = inputs.text_BTC, inputs.mask_BT
        return jnp.asarray(
            Transformer(config.model).apply({"params": params}, read_BLD, *text, so_far, drop_B)
        )

    mixed_BLD2 = logits(is_empty=False)
    if config.mixed == "logits":
        cfg = inputs.cfg_BK[:, k, None, None, None]
        mixed_BLD2 = cfg * mixed_BLD2 + (1 - cfg) * logits(is_empty=True)
    return mixed_BLD2[..., 1] - mixed_BLD2[..., 0]
