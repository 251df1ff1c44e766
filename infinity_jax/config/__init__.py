"""What the models are: frozen values that modules read, checked once when they are made.

Files under `configs/` give an ml_collections.ConfigDict; `config_files.from_dict` turns its sections into these.
"""

from infinity_jax.config.checks import DTYPES, WEIGHT_DTYPES, check_choice, nearest
from infinity_jax.config.sampling import GUIDANCE, SampleConfig
from infinity_jax.config.tokenizer import BINARY, TOKENIZER_REMAT, VECTOR, VIT, TokenizerConfig
from infinity_jax.config.transformer import (
    ADALN,
    ATTENTION,
    CONDITIONS,
    HEADS,
    LABEL_BASE,
    LABEL_CHANNELS,
    LEARNED,
    LEARNED_WITH_SCALES,
    MOST_INDEX_BITS,
    REMAT,
    TextConfig,
    TransformerConfig,
)
from infinity_jax.config.upscaler import COLOURS, UpscalerConfig

__all__ = [
    "ADALN",
    "ATTENTION",
    "BINARY",
    "COLOURS",
    "CONDITIONS",
    "DTYPES",
    "GUIDANCE",
    "HEADS",
    "LABEL_BASE",
    "LABEL_CHANNELS",
    "LEARNED",
    "LEARNED_WITH_SCALES",
    "MOST_INDEX_BITS",
    "REMAT",
    "TOKENIZER_REMAT",
    "VECTOR",
    "VIT",
    "WEIGHT_DTYPES",
    "SampleConfig",
    "TextConfig",
    "TokenizerConfig",
    "TransformerConfig",
    "UpscalerConfig",
    "check_choice",
    "nearest",
]
