"""A small published T5 for the tests: the reference's config and weights, and a tokenizer."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from helpers import paths
from infinity_jax.text.t5 import T5Config
from infinity_jax.tools.convert.t5 import EMBEDDING

GOLDEN = paths.GOLDEN / "t5"
CONFIG = T5Config.from_hf(json.loads((GOLDEN / "config.json").read_text()))
PIECES = ["▁", "▁a", "▁red", "▁heart", "▁dog", "▁very", "s", *"abcdefghijklmnopqrtuvwxyz"]


def small_tokenizer(end: bool = True, pieces: tuple[str, ...] = ()) -> Tokenizer:
    """A tokenizer.json like T5's, with few pieces."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary += [(piece, -1.0 - i / 10) for i, piece in enumerate([*PIECES, *pieces])]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    if end:
        template = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
        tokenizer.post_processor = template  # pyright: ignore[reportAttributeAccessIssue]
    # As some published files have it; the encoder must not be misled.
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    return tokenizer


def write_published(folder: Path) -> None:
    """A folder as Hugging Face has it, with parts that an encoder does not need."""
    folder.mkdir()
    (folder / "config.json").write_text((GOLDEN / "config.json").read_text())
    small_tokenizer().save(str(folder / "tokenizer.json"))
    weights = load_file(GOLDEN / "model.safetensors")
    more = {"decoder.final_layer_norm.weight": np.ones(48, np.float16), "lm_head.weight": weights[EMBEDDING]}
    save_file(weights | more, folder / "model.safetensors")
