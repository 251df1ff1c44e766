"""The one interface of text encoders, and how to get one by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from infinity_jax.config import TextConfig
from infinity_jax.config_files import from_dict
from infinity_jax.errors import UserError
from infinity_jax.runtime.sharding import Layout
from infinity_jax.text.batching import bucket_length
from infinity_jax.text.labels import LabelEncoder
from infinity_jax.text.minilm import load_minilm
from infinity_jax.text.t5_encoder import HOW_TO_MAKE, load_t5

# Prompts are padded to this length at least: a few tokens more cost nothing beside the picture's, and there are fewer
# lengths to compile for.
_SHORTEST_PROMPT = 32


@runtime_checkable
class TextEncoder(Protocol):
    """A frozen text encoder. Each text's features depend on that text alone.

    Attributes:
      name: by which `load_text_encoder` knows it.
      channels: C, of a feature.
      max_length: the most tokens of one text, start and end tokens included; more is cut with a warning.
      fingerprint: a hash of weights, vocabulary and dtype: equal fingerprints give equal features (for caches).
      params: the weights, nested dicts of arrays.
    """

    name: str
    channels: int
    max_length: int
    fingerprint: str
    params: PyTree

    def token_counts(self, texts: Sequence[str]) -> Int[np.ndarray, " B"]:
        """Counts the valid tokens that `encode` would give for each text: int32 [B], at most `max_length`."""
        ...

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of texts, start and end tokens included, cut to `max_length`; errors as `encode`."""
        ...

    def flops(self, tokens: int) -> int:
        """Counts the FLOP of one text that is padded to so many tokens."""
        ...

    def apply(
        self, params: PyTree, ids_BT: Int[Array, "B T"], mask_BT: Bool[Array, "B T"]
    ) -> Float[Array, "B T C"]:
        """Computes features float32, a pure function that can be jitted; what it gives at padding means nothing."""
        ...

    def encode(self, texts: Sequence[str]) -> tuple[Float[np.ndarray, "B T C"], Bool[np.ndarray, "B T"]]:
        """Returns features float32 [B,T,C] (zero at padding) and mask bool [B,T] (True = a token of the text).

        T is 8, 16, 32, ... by the longest text, at most `max_length`. Raises UserError for an empty
        prompt, one that is not a string, and an empty list.
        """
        ...

    def place(self, layout: Layout) -> None:
        """Lays the weights over a mesh; from then on all its processes must call `encode`, with the same texts."""
        ...


def text_encoder_of(text: Mapping[str, Any]) -> TextEncoder:
    """Loads the text encoder of a section `text`, see `TextConfig`; errors as of `load_text_encoder`."""
    config = from_dict(TextConfig, text, "text")
    if config.encoder == "labels":
        return LabelEncoder(config.classes, config.labels)
    return load_text_encoder(config.encoder, config.max_length, config.path, config.dtype)


def load_text_encoder(name: str, max_length: int, path: str = "", dtype: str = "bfloat16") -> TextEncoder:
    """Loads the text encoder called `name`, for texts of at most `max_length` tokens.

    Args:
      name: "minilm", or "t5" for Flan-T5 of any size.
      max_length: tokens, start and end tokens included.
      path: for "t5" the folder text_encoder/ of a converted checkpoint; MiniLM's weights are a package.
      dtype: for "t5", see `TextConfig`.
    Raises:
      UserError: the name is unknown, the encoder cannot take `max_length`, `path` is missing or not wanted, or
        weights are missing or not the expected ones.
    """
    if name == "minilm":
        if path:
            raise UserError(f"the text encoder 'minilm' takes no path, got {path!r}; leave it out")
        return load_minilm(max_length)
    if name == "t5":
        if not path:
            raise UserError(f"the text encoder 't5' needs the path of its folder; {HOW_TO_MAKE}")
        return load_t5(max_length, Path(path).expanduser(), dtype)
    raise UserError(f"unknown text encoder {name!r}; known: minilm, t5")


def padded_lengths(text_encoder: TextEncoder, texts: Sequence[str]) -> list[int]:
    """Returns the length that each text would be padded to in a request of its own: 32, 64, ..., at most the longest.

    All texts of a request are padded to that of the longest one.
    """
    counts = text_encoder.token_counts(texts)
    return [bucket_length(max(int(n), _SHORTEST_PROMPT), text_encoder.max_length) for n in counts]
