"""The sections of the config files of both trainers: name -> the dataclass that documents and checks its keys."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from infinity_jax.config import (
    SampleConfig,
    TextConfig,
    TokenizerConfig,
    TransformerConfig,
    UpscalerConfig,
    check_choice,
)
from infinity_jax.config_files import DURATION, checked_values, from_dict
from infinity_jax.data.degradation.process import DegradationConfig
from infinity_jax.data.prepared.config import DataConfig
from infinity_jax.data.resolutions import PictureConfig
from infinity_jax.errors import UserError
from infinity_jax.runtime.sharding import MeshSection
from infinity_jax.training.config import DURATIONS, TokenizerTrainConfig, TrainConfig
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.discriminator import DiscriminatorConfig
from infinity_jax.training.optim import OptimConfig
from infinity_jax.training.tokenizer_step import TokenizerLossConfig
from infinity_jax.training.transformer_step import LossConfig

# By command. A transformer's config also has the key `tokenizer`, a folder with one; an upscaler's `system`, a folder
# with both, and `stage`, see `UpscalerStepConfig`; a grid of `infinity-jax sweep`
# has the keys of `tools.scaling.grid.GridConfig`.
SECTIONS: Mapping[str, Mapping[str, type[Any]]] = {
    "train": {
        "model": TransformerConfig,
        "text": TextConfig,
        "data": DataConfig,
        "correction": CorrectionConfig,
        "loss": LossConfig,
        "optim": OptimConfig,
        "train": TrainConfig,
        "mesh": MeshSection,
        "sample": SampleConfig,
    },
    "train-tokenizer": {
        "model": TokenizerConfig,
        "loss": TokenizerLossConfig,
        "discriminator": DiscriminatorConfig,
        "optim": OptimConfig,
        "data": PictureConfig,
        "train": TokenizerTrainConfig,
        "mesh": MeshSection,
    },
    "train-upscaler": {
        "upscaler": UpscalerConfig,
        "degradation": DegradationConfig,
        "data": PictureConfig,
        "correction": CorrectionConfig,
        "loss": LossConfig,
        "optim": OptimConfig,
        "train": TrainConfig,
        "mesh": MeshSection,
        "sample": SampleConfig,
    },
}
# The numbers of an evaluation, of which `train.keep_best` may name one.
EVALUATED: Mapping[str, Sequence[str]] = {
    "train": ("validation_loss", "validation_bit_accuracy"),
    "train-tokenizer": ("validation_psnr",),
    "train-upscaler": ("validation_loss",),
}
_WITH_LENGTHS = ("train", "discriminator")
# May be missing in a config file: all its keys have defaults, and few runs have one.
_OPTIONAL = ("discriminator",)


def read(config: Any, command: str) -> dict[str, Any]:
    """Reads and checks all sections of a config, before data or devices are looked for.

    Returns:
      name -> an instance of the section's dataclass. Those with lengths, `train` and `discriminator`, are checked here
      and left out: they are read once it is known how many examples an epoch has.
    Raises:
      UserError: a section is missing, or one of its keys or values is wrong.
    """
    sections = {}
    for name, cls in SECTIONS[command].items():
        if name not in config and name not in _OPTIONAL:
            raise UserError(f"the config has no section {name}; add it, as configs/emoji.py has it")
        values = config.get(name, {})
        if name not in _WITH_LENGTHS:
            sections[name] = from_dict(cls, values, name)
            continue
        # A length that is text stands for any number of steps.
        if isinstance(values, Mapping | ConfigDict):
            values = {key: _any_length(key, values[key]) for key in values}
        checked_values(cls, values, name)
    best = config["train"].get("keep_best", "")
    if best:
        check_choice(best, EVALUATED[command], "train.keep_best")
    for key, of_command in (("tokenizer", "train"), ("system", "train-upscaler")):
        if command == of_command:
            sections[key] = config.get(key, "")
            if not sections[key] or not isinstance(sections[key], str):
                raise UserError(
                    f"config.{key} is {sections[key]!r}; name a folder with a {key}, or 'bundled'"
                )
    return sections


def _any_length(key: str, value: Any) -> Any:
    """Returns 1 for a length that is text, like "10%", and other values as they are."""
    return 1 if key in DURATIONS and isinstance(value, str) and DURATION.fullmatch(value) else value
