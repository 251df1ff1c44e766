"""Records that hold the features of the tokenizer and the text encoder in place of pictures, as bfloat16."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from infinity_jax.checkpoints.trained import TrainedTokenizer
from infinity_jax.data import captions
from infinity_jax.data.prepared.config import DataConfig
from infinity_jax.errors import UserError
from infinity_jax.text.encoder import TextEncoder


def described(scales: str, tokenizer: TrainedTokenizer, text_encoder: TextEncoder) -> dict[str, Any]:
    """Describes what makes the features, as the index of the records holds it."""
    return {
        "scales": scales,
        "tokenizer": tokenizer.fingerprint,
        "text_encoder": f"{text_encoder.name} {text_encoder.fingerprint[:24]}",
        "text_length": text_encoder.max_length,
    }


def check(
    stored: Mapping[str, Any], config: DataConfig, tokenizer: TrainedTokenizer, text_encoder: TextEncoder
) -> None:
    """Raises UserError unless features described by `found` are those that a run with these encoders would make."""
    needed = described(config.scales, tokenizer, text_encoder)
    keys = {
        "scales": "config.data.scales",
        "tokenizer": "config.tokenizer",
        "text_encoder": "config.text",
        "text_length": "config.text.max_length",
    }
    for name, key in keys.items():
        if stored.get(name) != needed[name]:
            raise UserError(
                f"the features in {config.source} were made with {name} {stored.get(name)!r}, and {key} gives "
                f"{needed[name]!r}; use what they were made with, or make them again: infinity-jax prepare --features"
            )
    if config.cut_captions:
        raise UserError(
            f"data.cut_captions is {config.cut_captions}, and features of whole captions cannot be cut; "
            "set it to 0 or train from the pictures"
        )


def arrays(
    record: Mapping[str, Any], long_share: float, length: int, draw: random.Random
) -> dict[str, np.ndarray]:
    """Returns a record's {features bfloat16 [h,w,d], text bfloat16 [T,C], text_mask bool [T]} for one of its captions.

    Args:
      long_share: probability of the long caption where there are both.
      length: T.
    """
    text_tC = draw.choice(record["text"][captions.kind_of(record["text"], long_share, draw)])
    text_TC = np.zeros((length, text_tC.shape[1]), text_tC.dtype)
    text_TC[: len(text_tC)] = text_tC
    return {"features": record["features"], "text": text_TC, "text_mask": np.arange(length) < len(text_tC)}
