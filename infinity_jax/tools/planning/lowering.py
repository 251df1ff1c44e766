"""The train step and the sampler of a config, lowered for a mesh from shapes alone: no array is made."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from infinity_jax import presets, scales
from infinity_jax.checkpoints import pretrained
from infinity_jax.config import TokenizerConfig, TransformerConfig, from_dict
from infinity_jax.runtime.sharding import Layout
from infinity_jax.sampling.config import MIXED, SamplerConfig, SamplerInputs
from infinity_jax.sampling.sampler import make_sampler
from infinity_jax.tools.planning import flops
from infinity_jax.training import optim, transformer_step
from infinity_jax.training import state as train_state
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.transformer_step import LossConfig, make_train_step
from infinity_jax.transformer.transformer import Transformer, init_variables


@dataclasses.dataclass(frozen=True)
class Program:
    """A program for a mesh, not yet compiled.

    Attributes:
      lowered: the program.
      model_flops: what the models need for it by formula, all devices together.
    """

    lowered: jax.stages.Lowered
    model_flops: int


def lower_train_step(
    config: Any,
    size: str,
    model: TransformerConfig,
    schedule: scales.ScaleSchedule,
    batch: int,
    microbatches: int,
    layout: Layout,
) -> Program:
    """The train step of `infinity-jax train` on shapes, with the config's loss, optimiser and self-correction."""
    optim_config = from_dict(optim.OptimConfig, config.optim, "optim")
    optimiser = optim.make_optimiser(optim_config, config.train.steps, no_decay=transformer_step.not_a_kernel)
    new_state, placed = train_state.new_state(
        lambda: init_variables(model, jax.random.key(0), schedule)["params"],
        optimiser,
        optim_config.ema_decay > 0,
        layout,
    )
    tokenizer = _tokenizer(size, model)
    step = make_train_step(
        Transformer(model),
        schedule,
        tokenizer,
        from_dict(CorrectionConfig, config.correction, "correction"),
        from_dict(LossConfig, config.loss, "loss"),
        optim_config,
        optimiser,
        microbatches,
    )
    split, text = layout.batch(batch, microbatches), config.text.max_length
    features = (batch, *schedule.times(tokenizer.patchify).last, tokenizer.bits)
    arrays = {
        "features": _shape(features, "float32", split),
        "text": _shape((batch, text, model.text_channels), "float16", split),
        "text_mask": _shape((batch, text), "bool", split),
    }
    state = _shapes(jax.eval_shape(new_state), placed)
    key = jax.eval_shape(lambda: jax.random.key(0))
    jitted = jax.jit(layout.traced(step), donate_argnums=0, out_shardings=(placed, layout.replicated))
    return Program(jitted.lower(state, arrays, key), batch * flops.train_flops(model, schedule, text))


def lower_sampler(
    config: Any,
    size: str,
    model: TransformerConfig,
    schedule: scales.ScaleSchedule,
    batch: int,
    layout: Layout,
) -> Program:
    """The sampler of `infinity-jax sample` on shapes, with float32 weights and the config's guidance."""
    tokenizer = _tokenizer(size, model)
    # A pyramid mixes logits too.
    mixed = config.sample.guidance if config.sample.guidance in MIXED else "logits"
    split, text = layout.batch(batch), config.text.max_length
    numbers = _shape((schedule.n_scales,), "float32", layout.replicated)
    inputs = SamplerInputs(
        text_BTC=_shape((batch, text, model.text_channels), "float32", split),
        mask_BT=_shape((batch, text), "bool", split),
        seeds_B=_shape((batch,), "uint32", split),
        cfg_K=numbers,
        tau_K=numbers,
        top_p=_shape((), "float32", layout.replicated),
    )

    params = [
        _shapes(nn.meta.unbox(boxed), layout.of(boxed))
        for boxed in (pretrained.transformer_variables(model), pretrained.tokenizer_variables(tokenizer))
    ]
    sampler = SamplerConfig(model, tokenizer, schedule, mixed, (max(-5, -model.layers),))
    draw: Any = make_sampler(sampler, layout)
    drawn = (1 if mixed == "none" else 2) * flops.forward_flops(model, schedule, text).total
    decoded = flops.decoder_flops(tokenizer, schedule.times(tokenizer.patchify).last)
    return Program(draw.lower(*params, inputs), batch * (drawn + decoded))


def _tokenizer(size: str, model: TransformerConfig) -> TokenizerConfig:
    """That of a published size; for another model one of as many bits."""
    if size in presets.PRESETS:
        return presets.TOKENIZERS[presets.PRESETS[size].tokenizer]
    return TokenizerConfig(bits=model.bits)


def _shape(shape: Sequence[int], dtype: str, placed: NamedSharding) -> Any:
    return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype), sharding=placed)


def _shapes(tree: Any, placed: Any) -> Any:
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, placed)
