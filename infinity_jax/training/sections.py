"""The sections of the config files of both trainers: name -> the dataclass that documents and checks its keys."""

from collections.abc import Mapping
from typing import Any

from infinity_jax.config import SampleConfig, TextConfig, TokenizerConfig, TransformerConfig
from infinity_jax.data.prepared.config import DataConfig
from infinity_jax.data.resolutions import PictureConfig
from infinity_jax.runtime.sharding import MeshSection
from infinity_jax.training.config import TokenizerTrainConfig, TrainConfig
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.discriminator import DiscriminatorConfig
from infinity_jax.training.optim import OptimConfig
from infinity_jax.training.tokenizer_step import TokenizerLossConfig
from infinity_jax.training.transformer_step import LossConfig

# By command. A transformer's config also has the key `tokenizer`, a folder with one; a grid of `infinity-jax sweep`
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
}
