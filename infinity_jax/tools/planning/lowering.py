"""The train steps and the sampler of a config, lowered for a mesh from shapes alone: no array of them is made.

They are the very programs that `infinity-jax train`, `train-tokenizer`, `train-upscaler` and `sample` run.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from infinity_jax import presets, scales
from infinity_jax.checkpoints import trained
from infinity_jax.config import VECTOR, TokenizerConfig, TransformerConfig
from infinity_jax.config_files import from_dict
from infinity_jax.metrics.lpips import made_up_lpips
from infinity_jax.runtime.sharding import Layout
from infinity_jax.sampling.config import MIXED, SamplerConfig, SamplerInputs
from infinity_jax.sampling.sampler import make_sampler, rounded
from infinity_jax.tokenizer.model import quantizer_of
from infinity_jax.tokenizer.pyramid import Quantizer
from infinity_jax.training import flops, sections, train_tokenizer, upscaler_step
from infinity_jax.training.adversary import adversary_of
from infinity_jax.training.config import TokenizerTrainConfig, from_section
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.optim import OptimConfig
from infinity_jax.training.tokenizer_step import ADVERSARIAL
from infinity_jax.training.transformer_step import LossConfig, StepConfig, build_step
from infinity_jax.training.upscaler_step import UpscalerStepConfig
from infinity_jax.transformer.joined_maps import JOINED


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
      size: a name in `presets.PRESETS`, whose tokenizer is taken; for another, one of as many bits or codes as the
        model.
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
        quantizer=_made_up_codes(tokenizer, schedule.n_scales) if tokenizer.quantizer == VECTOR else None,
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
    params = jax.eval_shape(layout.traced(lambda params: rounded(model, params)), nn.meta.unbox(variables))
    params = _with_shardings(params, _as_rounded(params, layout.of(variables)))
    tokenizer_params = _with_shardings(nn.meta.unbox(tokenizer_variables), layout.of(tokenizer_variables))
    sampler = SamplerConfig(model, tokenizer, schedule, mixed, (max(-5, -model.layers),))
    draw: Any = make_sampler(sampler, layout)
    drawn = (1 if mixed == "none" else 2) * flops.forward_flops(model, schedule, text).total
    decoded = flops.decoder_flops(tokenizer, schedule.times(tokenizer.patchify).last)
    return Program(draw.lower(params, tokenizer_params, inputs), batch * (drawn + decoded))


def lower_tokenizer_step(
    config: Any, model: TokenizerConfig, resolution: str, batch: int, layout: Layout
) -> Program:
    """Lowers the train step of `infinity-jax train-tokenizer`, with the adversary if the config has one.

    Args:
      config: a ConfigDict as configs/tokenizer.py makes it. For LPIPS no files are needed: its weights are made up.
      model: the tokenizer.
      resolution: scale preset of the pictures.
      batch: pictures over all devices.
      layout: the mesh, of devices that need not be here.
    """
    parts = sections.read(config, "train-tokenizer")
    train = from_section(config.train, batch, TokenizerTrainConfig)
    data = dataclasses.replace(parts["data"], scales=resolution, mix="")
    _, scales_of = train_tokenizer.resolutions_of(data, model, parts["loss"], train)
    adversary = adversary_of(config, parts["optim"], train, batch)
    step_config = train_tokenizer.StepConfig(
        model, parts["loss"], parts["optim"], train, scales_of, adversary
    )
    network = None
    if parts["loss"].feature_network == "lpips":
        network = made_up_lpips()
    features = train_tokenizer.feature_loss(parts["loss"], model, network)
    step = train_tokenizer.build_step(step_config, features, layout)
    ((side, of_side),) = scales_of.items()
    split = layout.batch(batch)
    arrays = {"image": _shape((batch, side, side, 3), "uint8", split)}
    if adversary is not None:
        arrays[ADVERSARIAL] = _shape((batch,), "bool", split)
    lowered = step.jitted().lower(step.state_shapes(), arrays, jax.eval_shape(lambda: jax.random.key(0)))
    return Program(lowered, batch * flops.tokenizer_train_flops(model, of_side.schedule.last))


def lower_upscaler_step(parts: UpscalerStepConfig, text: int, batch: int, layout: Layout) -> Program:
    """Lowers the train step of `infinity-jax train-upscaler`.

    Args:
      parts: what it is made of.
      text: tokens of a caption.
      batch: pictures over all devices.
      layout: the mesh, of devices that need not be here.
    """
    step, split = upscaler_step.build_step(parts, layout), layout.batch(batch, parts.microbatches)
    tokenizer, side = parts.tokenizer, parts.upscaler.side
    true = (batch, *parts.schedule.times(tokenizer.patchify).last, tokenizer.bits)
    arrays = {
        "features": _shape(true, "float32", split),
        "low_features": _shape((batch, side, side, tokenizer.bits), "float32", split),
    }
    needed = 3 * flops.upscaler_flops(parts.upscaler)
    if parts.stage == 2:
        arrays["text"] = _shape((batch, text, parts.model.text_channels), "bfloat16", split)
        arrays["text_mask"] = _shape((batch, text), "bool", split)
        needed += flops.train_flops(parts.model, parts.schedule, text)
    lowered = step.jitted().lower(step.state_shapes(), arrays, jax.eval_shape(lambda: jax.random.key(0)))
    return Program(lowered, batch * needed)


def _tokenizer(size: str, model: TransformerConfig) -> TokenizerConfig:
    """Picks the tokenizer of a published size; for another model a published one of as many bits or codes, or such."""
    if size in presets.PRESETS:
        return presets.TOKENIZERS[presets.PRESETS[size].tokenizer]
    for known in presets.TOKENIZERS.values():
        if (known.transformer_bits, known.codes) == (model.bits, model.codes) and not known.side:
            return known
    if model.codes:
        return dataclasses.replace(presets.TOKENIZERS["var"], bits=model.bits, codes=model.codes)
    return TokenizerConfig(bits=model.bits)


def _made_up_codes(tokenizer: TokenizerConfig, n_scales: int) -> Quantizer:
    """Draws a codebook and its convolutions, which are constants of a train step."""
    random = np.random.default_rng(0)
    own = trained.tokenizer_shapes(tokenizer)["codebook"]
    drawn = jax.tree.map(lambda x: random.standard_normal(x.shape, np.float32), own)
    return quantizer_of(tokenizer, {"codebook": drawn}, n_scales)


def _shape(shape: Sequence[int], dtype: Any, sharding: NamedSharding) -> Any:
    return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype), sharding=sharding)


def _as_rounded(params: Any, shardings: Any) -> Any:
    """Makes the shardings of the sampler's parameters (`rounded`) from those of the trained ones."""
    blocks = dict(shardings["blocks"])
    for layer, maps, name in JOINED:
        if layer not in blocks:  # of a model of labels
            continue
        others = {key: value for key, value in blocks[layer].items() if key not in maps}
        one = jax.tree.map(
            lambda where: NamedSharding(where.mesh, PartitionSpec(*where.spec[:-2], None, *where.spec[-2:])),
            blocks[layer][maps[-1]],
        )
        blocks[layer] = {**others, name: one}
    if isinstance(params["blocks"], list):
        blocks = jax.tree.map(lambda where: NamedSharding(where.mesh, PartitionSpec(*where.spec[1:])), blocks)
        blocks = [blocks] * len(params["blocks"])
    return {**shardings, "blocks": blocks}


def _with_shardings(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, where: _shape(x.shape, x.dtype, where), tree, shardings)
