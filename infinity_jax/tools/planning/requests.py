"""What `infinity-jax compile` is asked for, and which programs that is: of which model, for which pictures."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from infinity_jax import scales
from infinity_jax.checkpoints.opened import open_checkpoint
from infinity_jax.checkpoints.trained import tokenizer_shapes, upscaler_shapes
from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.config_files import from_dict
from infinity_jax.errors import UserError
from infinity_jax.presets import PRESETS, TOKENIZERS
from infinity_jax.runtime import sharding
from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.runtime.sharding import Layout
from infinity_jax.tools.planning.chips import Target
from infinity_jax.tools.planning.lowering import (
    Program,
    lower_sampler,
    lower_tokenizer_step,
    lower_train_step,
    lower_upscaler_step,
)
from infinity_jax.training import flops, sections, train_tokenizer
from infinity_jax.training.upscaler_step import step_config


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be compiled: the options of `infinity-jax compile`, whose help explains them; None is the default.

    `aspects` maps aspect ratios to their shares of the batches.
    """

    config: str
    size: str | None
    budget: str | None
    aspects: Mapping[str, float]
    topology: str
    slices: int
    mesh: str | None
    rules: str | None
    batch: int | None
    microbatches: int | None
    remat: str | None
    sampler: bool
    quick: bool


@dataclasses.dataclass(frozen=True)
class Planned:
    """Programs to compile, and what the report says of all of them.

    Attributes:
      program: what it is.
      about: entries of the report.
      shapes: of pictures: their name, their share of the batches, and a function that lowers the program for them.
    """

    program: str
    about: Mapping[str, Any]
    shapes: Sequence[tuple[str, float, Callable[[], Program]]]


def plan(r: Request, values: Any, target: Target) -> Planned:
    """Plans the programs of a config, by what it is of."""
    kind = _of_upscaler if "upscaler" in values else _of_transformer if "text" in values else _of_tokenizer
    return kind(r, values, target)


def _mesh(
    r: Request, values: Any, model: TransformerConfig | None, target: Target
) -> tuple[dict, Any, Layout]:
    """Returns what the report says of the mesh, the mesh and the layout on it."""
    mesh = r.mesh or str(values.mesh.shape) or f"fsdp={len(target.devices)}"
    mesh_config = parse_mesh(mesh, r.slices)
    rules = r.rules or sharding.least_rules(mesh_config)
    layout = sharding.layout_of(mesh_config, rules, model, target.devices)
    return {"mesh": mesh, "rules": rules}, mesh_config, layout


def _of_transformer(r: Request, values: Any, target: Target) -> Planned:
    if r.sampler and r.microbatches:
        raise UserError("--microbatches is of the train step; leave it out with --sampler")
    model, budget = from_dict(TransformerConfig, values.model, "model"), r.budget or str(values.data.scales)
    model = dataclasses.replace(model, remat=model.remat if r.remat is None else r.remat)
    about, mesh, layout = _mesh(r, values, model, target)
    pictures: int = r.batch or (mesh.data * mesh.fsdp if r.sampler else values.train.batch_size)
    parts: int = 1 if r.sampler else r.microbatches or values.train.microbatches
    size = r.size or ""

    def lower(aspect: str) -> Program:
        schedule = scales.make_schedule(budget, aspect)
        if r.sampler:
            return lower_sampler(values, size, model, schedule, pictures, layout)
        return lower_train_step(values, size, model, schedule, pictures, parts, layout)

    about |= {"batch": pictures, "microbatches": parts, "remat": model.remat}
    about |= {"size": r.size or Path(r.config).name, "budget": budget}
    about["parameters"] = flops.parameter_count(model)
    shapes = [(aspect, share, functools.partial(lower, aspect)) for aspect, share in r.aspects.items()]
    return Planned("sampler" if r.sampler else "train step", about, shapes)


def _of_tokenizer(r: Request, values: Any, target: Target) -> Planned:
    """Plans a tokenizer's step for each resolution of its config, or the one that --budget names."""
    if r.sampler or r.microbatches or list(r.aspects) != ["1:1"]:
        raise UserError("a tokenizer has no sampler, microbatches or aspects; leave out these options")
    model = from_dict(TokenizerConfig, values.model, "model")
    model = dataclasses.replace(model, remat=model.remat if r.remat is None else r.remat)
    mix: dict[str, Any] = train_tokenizer.resolution_mix(
        values.data.mix, values.data.scales, values.train.batch_size
    )
    if r.budget is not None:
        mix = {r.budget: r.batch or mix.get(r.budget, values.train.batch_size)}
    elif r.batch is not None:
        raise UserError(
            f"--batch {r.batch} needs one --budget, of {', '.join(mix)}: each has a batch of its own"
        )
    about, _, layout = _mesh(r, values, None, target)

    def lower(resolution: str, batch: int) -> Program:
        return lower_tokenizer_step(values, model, resolution, batch, layout)

    about |= {"batch": max(mix.values()), "microbatches": 1, "remat": model.remat}
    about["parameters"] = sum(math.prod(x.shape) for x in jax.tree.leaves(tokenizer_shapes(model)))
    shapes = [(name, 1.0, functools.partial(lower, name, batch)) for name, batch in mix.items()]
    return Planned(
        "tokenizer's train step", {**about, "size": Path(r.config).name, "budget": ", ".join(mix)}, shapes
    )


def _of_upscaler(r: Request, values: Any, target: Target) -> Planned:
    """Plans the step of an upscaler, on a published system by name or on a checkpoint."""
    if r.sampler or r.budget or list(r.aspects) != ["1:1"]:
        raise UserError("an upscaler's step has no sampler, budget or aspects; leave out these options")
    read, train = sections.read(values, "train-upscaler"), values.train
    model, tokenizer = _system(read["system"])
    model = dataclasses.replace(model, remat=model.remat if r.remat is None else r.remat)
    about, _, layout = _mesh(r, values, model, target)
    microbatches = r.microbatches or train.microbatches
    parts = step_config(read, values.stage, (model, tokenizer), train.steps, microbatches)
    batch = r.batch or train.batch_size
    lower = functools.partial(lower_upscaler_step, parts, model.text_length, batch, layout)
    network = sum(math.prod(x.shape) for x in jax.tree.leaves(upscaler_shapes(parts.upscaler)))
    about |= {"batch": batch, "microbatches": microbatches, "remat": model.remat}
    about |= {"size": Path(r.config).name, "budget": read["data"].scales}
    about["parameters"] = network + (flops.parameter_count(model) if parts.stage == 2 else 0)
    return Planned("upscaler's train step", about, [("1:1", 1.0, lower)])


def _system(name: str) -> tuple[TransformerConfig, TokenizerConfig]:
    if name in PRESETS:
        return PRESETS[name].transformer, TOKENIZERS[PRESETS[name].tokenizer]
    opened = open_checkpoint(name)
    return opened.transformer_config(), opened.tokenizer().config
