"""A tiny system of random weights, for pictures of 16x16 pixels: 4x4 to 16x16 bits, patchified, read by MiniLM."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
from jaxtyping import PyTree

from helpers.arbitrary_params import arbitrary_params
from infinity_jax import scales
from infinity_jax.checkpoints import pretrained, trained
from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.tokenizer.model import Tokenizer, initial_variables

TOKENIZER = TokenizerConfig(
    bits=3, base_width=32, multipliers=(1, 1), encoder_blocks=1, decoder_blocks=1, patchify=2
)
MODEL = TransformerConfig(
    layers=1, width=64, heads=2, bits=12, text_channels=384, text_length=8, compute_dtype="float32"
)


def initial_params(tokenizer: Tokenizer, side: int, seed: int) -> PyTree:
    """Fresh float32 parameters of a tokenizer for pictures of `side` x `side` pixels."""
    return nn.meta.unbox(jax.jit(lambda: initial_variables(tokenizer, side, seed))())


def write_system(path: Path, text_length: int = 8) -> None:
    """Writes the folder that `InfinityPipeline.from_pretrained` reads."""
    model = dataclasses.replace(MODEL, text_length=text_length)
    params = initial_params(Tokenizer(TOKENIZER), 16, seed=0)
    system = trained.TrainedModel(
        trained.TrainedTokenizer(TOKENIZER, params, "32px", {}),
        model,
        arbitrary_params(model, scales.make_schedule("32px")),
        {"encoder": "minilm", "max_length": text_length},
        "",
        {"cfg": 2.0, "tau": 1.0, "top_p": 1.0, "guidance": "logits"},
        {},
    )
    pretrained.save_model(path, system)
