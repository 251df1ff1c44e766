"""A tiny upscaler of the system of `systems.py`: pictures of 8x8 pixels become 16x16."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax

from helpers import systems
from infinity_jax import config_files
from infinity_jax.checkpoints import pretrained
from infinity_jax.checkpoints.opened import open_checkpoint
from infinity_jax.checkpoints.trained import TrainedUpscaler
from infinity_jax.config import UpscalerConfig
from infinity_jax.upscaler.network import initial_variables

CONFIG = UpscalerConfig(
    bits=3,
    side=8,
    sizes=(2, 4),
    widths=(8, 16),
    layers=(1, 2),
    heads=(2, 2),
    extractor=(4, 4),
    factor=2,
)


def write_upscaler(folder: Path, origin: dict | None = None, **changes) -> UpscalerConfig:
    """Writes the folder that `UpscalePipeline.from_pretrained` reads; `origin` is what is noted of its run."""
    systems.write_system(folder)
    config = dataclasses.replace(CONFIG, **changes)
    params = nn.meta.unbox(jax.jit(lambda: initial_variables(config, 1))())
    system = open_checkpoint(folder).model()
    pretrained.save_model(folder, system, upscaler=TrainedUpscaler(config, params, origin or {}))
    return config


def config(system: Path, pictures: Path, *changes: str):
    """The config of a training of it, of few steps, on a folder of pictures."""
    network = dataclasses.asdict(CONFIG)
    changes = (
        f"system={system}",
        f"data.source=folder:{pictures}",
        "data.scales=32px",
        "train.steps=4",
        "train.batch_size=2",
        "train.checkpoint_every=2",
        "train.evaluate_every=4",
        "train.log_every=1",
        "degradation.rounds=1",
        "optim.warmup_steps=0",
        "optim.ema_decay=0.9",
        *(f"upscaler.{name}={network[name]}" for name in ("bits", "side", "factor")),
        *changes,
    )
    made = config_files.load("upscaler:debug", [f"--config.{change}" for change in changes])
    for name in ("sizes", "widths", "layers", "heads", "extractor"):
        made.upscaler[name] = network[name]
    return made
