"""`infinity-jax train-tokenizer`: picture -> features -> multi-scale bits -> picture."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from infinity_jax import scales
from infinity_jax.checkpoints import origin, pretrained
from infinity_jax.config import TokenizerConfig, from_dict, numbers_by_name
from infinity_jax.data import batches, pictures, records, resolutions, sources
from infinity_jax.data.resolutions import ResolutionMix
from infinity_jax.errors import UserError
from infinity_jax.files import sheets
from infinity_jax.metrics.efficientnet import load_efficientnet
from infinity_jax.metrics.lpips import HEADS_COME_FROM, VGG_COMES_FROM, load_lpips, lpips_distance
from infinity_jax.metrics.psnr import mean_psnr
from infinity_jax.runtime import global_batch, seeds, sharding
from infinity_jax.tokenizer.model import Tokenizer, initial_variables, reconstruct
from infinity_jax.training import config as durations
from infinity_jax.training import config as train_config
from infinity_jax.training import loop, optim
from infinity_jax.training import state as train_state
from infinity_jax.training.discriminator import Discriminator, DiscriminatorConfig
from infinity_jax.training.state import TrainState, averaged
from infinity_jax.training.tokenizer_losses import efficientnet_feature_loss
from infinity_jax.training.tokenizer_step import (
    ADVERSARIAL,
    Adversary,
    FeatureLoss,
    TokenizerLossConfig,
    make_train_step,
)
from infinity_jax.training.training_scales import TrainingScales
from infinity_jax.training.training_scales import training_scales as make_training_scales

SHEET_PICTURES = 12


def main(config: Any, workdir: str | Path) -> TrainState:
    """Trains a tokenizer into `workdir`, or goes on with the run that is there.

    Args:
      config: a ConfigDict as configs/emoji_tokenizer.py makes it: model, loss, discriminator, optim, data, train, mesh.
      workdir: gets checkpoints, metrics and picture sheets.
    Returns:
      the last state.
    Raises:
      UserError: a value of the config, the data or the disk stands in the way; the message says which.
    """
    model = from_dict(TokenizerConfig, config.model, "model")
    loss = from_dict(TokenizerLossConfig, config.loss, "loss")
    optim_config = from_dict(optim.OptimConfig, config.optim, "optim")
    test_schedule = scales.make_schedule(config.data.scales).times(model.patchify)

    source = sources.open_source(config.data.source, "train")
    train, is_adversarial = _train_section(config.train, len(source))
    tokenizer = Tokenizer(model)
    optimiser = optim.make_optimiser(optim_config, train.steps)
    layout = sharding.layout_from_config(config.mesh)
    mix, training_scales = _resolutions(config.data, model, loss, train)
    side = max(mix.sides)
    new_state, placed = train_state.new_state(
        lambda: initial_variables(tokenizer, side, train.seed), optimiser, optim_config.ema_decay > 0, layout
    )
    adversary = None
    if is_adversarial:
        adversary = _adversary(config.get("discriminator", {}), optim_config, train, len(source))
        new_state, placed = with_adversary(new_state, placed, adversary, min(mix.sides), train.seed, layout)

    for size in mix.batch_sizes:
        layout.batch(size)  # refuses one that the mesh cannot split

    return loop.run(
        workdir,
        train,
        new_state,
        placed,
        layout,
        make_train_step(
            tokenizer, loss, optim_config, optimiser, training_scales, feature_loss(loss), adversary
        ),
        functools.partial(_batches, source, mix, adversary),
        config=config.to_dict() | {"origin": origin.describe()},
        hooks=_hooks(tokenizer, test_schedule, config, train, layout, Path(workdir)),
        load_params=pretrained.load_tokenizer_params,
        batch_size_at=mix.batch_size_at,
    )


def _batches(
    source: records.Source,
    mix: ResolutionMix,
    adversary: Adversary | None,
    first_step: int,
    rows_of: loop.RowsOf,
) -> Iterator[batches.Batch]:
    """Batches {image}, with the adversary's key from its start on."""

    def decode(record, side: int):
        return {"image": pictures.decode(record["image"], side, side)}

    stream = resolutions.batches(source, mix, first_step, decode, rows_of)
    for step, batch in enumerate(stream, first_step):
        if adversary is not None and step >= adversary.config.start_step:
            batch[ADVERSARIAL] = np.ones(len(batch["image"]), bool)
        yield batch


def _train_section(section: Any, examples: int) -> tuple[train_config.TrainConfig, bool]:
    """How the run goes, and whether it has an adversary."""
    values = dict(section)
    is_adversarial = bool(values.pop("adversarial", False))
    train = train_config.from_section(values, examples)
    if train.microbatches != 1:
        raise UserError(
            f"train.microbatches is {train.microbatches}; a tokenizer is trained on whole batches, with 1"
        )
    return train, is_adversarial


def _resolutions(
    data: Any, model: TokenizerConfig, loss: TokenizerLossConfig, train: train_config.TrainConfig
) -> tuple[ResolutionMix, dict[int, TrainingScales]]:
    """Which resolution each step has, and the scales to train on by the pictures' height in pixels."""
    batch_sizes = resolution_mix(data.get("mix", ""), data.scales, train.batch_size)
    schedules = [scales.make_schedule(preset).times(model.patchify) for preset in batch_sizes]
    sides = tuple(schedule.last[0] * model.stride for schedule in schedules)
    if len(set(sides)) < len(sides):
        raise UserError(
            f"data.mix {data.mix!r} has two schedules for pictures of the same size; leave one out"
        )
    by_side = {
        side: make_training_scales(loss.scales, schedule, loss.scale_drop, loss.short_scales)
        for side, schedule in zip(sides, schedules, strict=True)
    }
    return ResolutionMix(sides, tuple(batch_sizes.values()), train.seed, train.steps), by_side


def resolution_mix(text: str, scales: str, batch_size: int) -> dict[str, int]:
    """The batch size of each resolution to train on, from config.data.mix; "" is one of `scales` with `batch_size`.

    Raises UserError if it is not of the form "64px=16,96px=8".
    """
    form = "RESOLUTION=BATCH_SIZE, like 64px=16,96px=8,"
    return numbers_by_name(text, "data.mix", form) or {scales: batch_size}


def feature_loss(loss: TokenizerLossConfig) -> FeatureLoss:
    """The distance in the features of the network that the config names. UserError if LPIPS lacks its files."""
    if loss.feature_network == "efficientnet":
        logging.info("loss.features compares pictures in the bundled EfficientNet-Lite0, not in LPIPS")
        return functools.partial(efficientnet_feature_loss, load_efficientnet())
    if not (loss.vgg_weights and loss.lpips_weights):
        raise UserError(
            f"loss.feature_network 'lpips' needs two files: loss.vgg_weights ({VGG_COMES_FROM}) and "
            f"loss.lpips_weights ({HEADS_COME_FROM}). Or use the bundled network: "
            "--config.loss.feature_network=efficientnet"
        )
    params = load_lpips(loss.vgg_weights, loss.lpips_weights)
    return lambda image, made: lpips_distance(params, image, made).mean()


def _adversary(
    section: Any, tokenizer_optim: optim.OptimConfig, train: train_config.TrainConfig, examples: int
) -> Adversary:
    """The discriminator trains as the tokenizer does, with its share of the run's rate at every step and no average."""
    values = dict(section)
    for name in values.keys() & {"start_step", "ramp_steps"}:
        values[name] = durations.in_steps(
            values[name], steps=train.steps, batch_size=train.batch_size, examples=examples
        )
    config = from_dict(DiscriminatorConfig, values, "discriminator")
    rate = tokenizer_optim.learning_rate * config.learning_rate_factor
    own = dataclasses.replace(tokenizer_optim, learning_rate=rate, ema_decay=0.0)
    return Adversary(config, optim.make_optimiser(own, train.steps, start=config.start_step))


def with_adversary(
    new_state: Callable[[], TrainState],
    placed: TrainState,
    adversary: Adversary,
    side: int,
    seed: int,
    layout: sharding.Layout,
) -> tuple[Callable[[], TrainState], TrainState]:
    """The same with a discriminator's state, for pictures from `side` x `side` pixels on."""

    def variables():
        key = seeds.stream(jax.random.key(seed), "discriminator", 0)
        return Discriminator(adversary.config).init(key, jnp.zeros((1, side, side, 3)))["params"]

    new, where = train_state.new_state(variables, adversary.optimiser, False, layout)
    both: Any = placed
    return lambda: cast(Any, new_state()).replace(adversary=new()), both.replace(adversary=where)


def _hooks(
    tokenizer: Tokenizer,
    schedule: scales.ScaleSchedule,
    config: Any,
    train: train_config.TrainConfig,
    layout: sharding.Layout,
    workdir: Path,
) -> list[loop.Hook]:
    """Validation PSNR and a sheet of originals above reconstructions, from the averaged parameters."""
    validation = sources.open_source(config.data.source, "validation")
    if len(validation) == 0:
        return []
    size, share = train.batch_size, layout.batch(train.batch_size)
    height, width = (n * tokenizer.config.stride for n in schedule.last)

    def decode(record):
        return {"image": pictures.decode(record["image"], height, width)}

    jitted = jax.jit(
        layout.traced(lambda params, image: reconstruct(tokenizer, params, image, schedule)),
        out_shardings=layout.replicated,
    )

    def reconstruct_batch(state: TrainState, image: np.ndarray) -> np.ndarray:
        batch = {"image": pictures.to_float(image)}
        placed = global_batch.place(batch, np.arange(size), size, share)["image"]
        return pictures.to_uint8(np.asarray(jitted(averaged(state), placed)))

    def evaluate(step: int, state: TrainState) -> dict[str, float]:
        pairs = []
        for batch in batches.eval_batches(validation, size, decode):
            image, valid = batch["image"], batch["valid"]
            pairs.append((image[valid], reconstruct_batch(state, image)[valid]))
        original, reconstruction = (np.concatenate(part) for part in zip(*pairs, strict=True))
        return {"validation_psnr": mean_psnr(original, reconstruction)}

    def draw(step: int, state: TrainState) -> None:
        images, reconstructions = [], []
        for batch in itertools.islice(
            batches.eval_batches(validation, size, decode), -(-SHEET_PICTURES // size)
        ):
            images.append(batch["image"][batch["valid"]])
            reconstructions.append(reconstruct_batch(state, batch["image"])[batch["valid"]])
        if jax.process_index() == 0:
            sheets.comparison_sheet(
                [np.concatenate(images)[:SHEET_PICTURES], np.concatenate(reconstructions)[:SHEET_PICTURES]],
                ["original", "reconstruction"],
                workdir / "samples" / f"reconstruction-{step:07d}.png",
                title=f"step {step}",
            )

    return [loop.Hook(train.evaluate_every, evaluate), loop.Hook(train.sample_every, draw)]
