"""The train step and the sampler of a config, lowered for a mesh from shapes alone: no array is made.

They are the very programs that `infinity-jax train` and `infinity-jax sample` run.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from infinity_jax import presets, scales
from infinity_jax.checkpoints import trained
from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.config_files import from_dict
from infinity_jax.runtime.sharding import Layout
from infinity_jax.sampling.config import MIXED, SamplerConfig, SamplerInputs
from infinity_jax.sampling.sampler import make_sampler, rounded
from infinity_jax.training import flops
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.optim import OptimConfig
from infinity_jax.training.transformer_step import LossConfig, StepConfig, build_step


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
    """Lowers the train step of `infinity-jax train`, with the config's loss, optimiser and self-correction.

    Args:
      config: a ConfigDict with the sections optim, correction, loss, text and train.
      size: a name in `presets.PRESETS`, whose tokenizer is taken; for another, one of as many bits as the model.
      model: the transformer.
      schedule: that of all pictures.
      batch: pictures over all devices.
      microbatches: see `StepConfig`.
      layout: the mesh, of devices that need not be here.
    """
    tokenizer = _tokenizer(size, model)
    parts = StepConfig(
        model=model,
        tokenizer=tokenizer,
        correction=from_dict(CorrectionConfig, config.correction, "correction"),
        loss=from_dict(LossConfig, config.loss, "loss"),
        optim=from_dict(OptimConfig, config.optim, "optim"),
        steps=config.train.steps,
        microbatches=microbatches,
    )
    step = build_step(parts, [schedule], layout)
    split, text = layout.batch(batch, microbatches), config.text.max_length
    features = (batch, *schedule.times(tokenizer.patchify).last, tokenizer.bits)
    arrays = {
        "features": _shape(features, "float32", split),
        "text": _shape((batch, text, model.text_channels), "float16", split),
        "text_mask": _shape((batch, text), "bool", split),
    }
    lowered = step.jitted().lower(step.state_shapes(), arrays, jax.eval_shape(lambda: jax.random.key(0)))
    return Program(lowered, batch * flops.train_flops(model, schedule, text))


def lower_sampler(
    config: Any,
    size: str,
    model: TransformerConfig,
    schedule: scales.ScaleSchedule,
    batch: int,
    layout: Layout,
) -> Program:
    """Lowers the sampler of `infinity-jax sample`, with weights rounded as the pipeline's and the config's guidance.

    Args:
      config: a ConfigDict with the sections sample and text.
      size, model, schedule, batch, layout: as in `lower_train_step`.
    """
    tokenizer = _tokenizer(size, model)
    # A pyramid mixes logits too.
    mixed = config.sample.guidance if config.sample.guidance in MIXED else "logits"
    split, text = layout.batch(batch), config.text.max_length
    numbers = _shape((batch, schedule.n_scales), "float32", split)
    inputs = SamplerInputs(
        text_BTC=_shape((batch, text, model.text_channels), "float32", split),
        mask_BT=_shape((batch, text), "bool", split),
        seeds_B=_shape((batch,), "uint32", split),
        cfg_BK=numbers,
        tau_BK=numbers,
        top_p_B=_shape((batch,), "float32", split),
    )

    variables, tokenizer_variables = (
        trained.transformer_variables(model),
        trained.tokenizer_variables(tokenizer),
    )
    params = jax.eval_shape(lambda params: rounded(model, params), nn.meta.unbox(variables))
    params = _with_shardings(params, layout.of(variables))
    tokenizer_params = _with_shardings(nn.meta.unbox(tokenizer_variables), layout.of(tokenizer_variables))
    sampler = SamplerConfig(model, tokenizer, schedule, mixed, (max(-5, -model.layers),))
    draw: Any = make_sampler(sampler, layout)
    drawn = (1 if mixed == "none" else 2) * flops.forward_flops(model, schedule, text).total
    decoded = flops.decoder_flops(tokenizer, schedule.times(tokenizer.patchify).last)
    return Program(draw.lower(params, tokenizer_params, inputs), batch * (drawn + decoded))


def _tokenizer(size: str, model: TransformerConfig) -> TokenizerConfig:
    """Picks the tokenizer of a published size; for another model one of as many bits."""
    if size in presets.PRESETS:
        return presets.TOKENIZERS[presets.PRESETS[size].tokenizer]
    return TokenizerConfig(bits=model.bits)


def _shape(shape: Sequence[int], dtype: Any, sharding: NamedSharding) -> Any:
    return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype), sharding=sharding)


def _with_shardings(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, where: _shape(x.shape, x.dtype, where), tree, shardings)
