"""Records with features in place of pictures: the tokenizer's in float32, the text encoder's in bfloat16."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from infinity_jax.checkpoints.trained import TrainedTokenizer
from infinity_jax.data import captions
from infinity_jax.data.prepared.config import DataConfig
from infinity_jax.errors import UserError
from infinity_jax.text.encoder import TextEncoder

# Key of their description: the type of the tokenizer's. Sets from before there was this key have bfloat16.
DTYPE = "picture_features"


def described(scales: str, tokenizer: TrainedTokenizer, text_encoder: TextEncoder) -> dict[str, Any]:
    """Describes what makes the features, as the index of the records holds it."""
    return {
        "scales": scales,
        "tokenizer": tokenizer.fingerprint,
        "text_encoder": f"{text_encoder.name} {text_encoder.fingerprint[:24]}",
        "text_length": text_encoder.max_length,
        DTYPE: "float32",
    }


def check(
    stored: Mapping[str, Any], config: DataConfig, tokenizer: TrainedTokenizer, text_encoder: TextEncoder
) -> None:
    """Raises UserError unless features described by `stored` are those that a run with these encoders would make.

    Those of older sets, which are rounded to bfloat16, are taken with a warning.
    """
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
    if stored.get(DTYPE, "bfloat16") != needed[DTYPE]:
        logging.warning(
            "the features in %s are rounded to bfloat16, as older versions stored them; about 2 in 1,000 of their bits "
            "differ from those of the pictures. To have all right make them again: infinity-jax prepare --features",
            config.source,
        )
    if config.cut_captions:
        raise UserError(
            f"data.cut_captions is {config.cut_captions}, and features of whole captions cannot be cut; "
            "set it to 0 or train from the pictures"
        )


def arrays(
    record: Mapping[str, Any], long_share: float, length: int, draw: random.Random
) -> dict[str, np.ndarray]:
    """Returns a record's {features [h,w,d], text bfloat16 [T,C], text_mask bool [T]} for one of its captions.

    Args:
      long_share: probability of the long caption where there are both.
      length: T.
    """
    text_tC = draw.choice(record["text"][captions.kind_of(record["text"], long_share, draw)])
    text_TC = np.zeros((length, text_tC.shape[1]), text_tC.dtype)
    text_TC[: len(text_tC)] = text_tC
    return {"features": record["features"], "text": text_TC, "text_mask": np.arange(length) < len(text_tC)}
