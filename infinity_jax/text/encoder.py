"""The one interface of text encoders, and how to get one by name."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from infinity_jax.errors import UserError
from infinity_jax.text import minilm


@runtime_checkable
class TextEncoder(Protocol):
    """A frozen text encoder. Each text's features depend on that text alone."""

    @property
    def name(self) -> str:
        """The name that `load_text_encoder` knows it by."""
        ...

    @property
    def channels(self) -> int:
        """C, the channels of a feature."""
        ...

    @property
    def max_length(self) -> int:
        """The most tokens of one text, start and end tokens included; more is cut with a warning."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of weights and vocabulary: equal fingerprints give equal features (for caches)."""
        ...

    def token_counts(self, texts: Sequence[str]) -> Int[np.ndarray, " B"]:
        """The valid tokens that `encode` would give for each text: int32 [B], at most `max_length`."""
        ...

    def encode(self, texts: Sequence[str]) -> tuple[Float[np.ndarray, "B T C"], Bool[np.ndarray, "B T"]]:
        """Features float32 [B,T,C] (zero at padding) and mask bool [B,T] (True = a token of the text).

        T is 8, 16, 32, ... by the longest text, at most `max_length`. Raises UserError for an empty
        prompt, one that is not a string, and an empty list.
        """
        ...


_LOADERS = {"minilm": minilm.load_minilm}


def load_text_encoder(name: str, max_length: int) -> TextEncoder:
    """The text encoder called `name`, for texts of at most `max_length` tokens.

    Raises UserError for an unknown name, a `max_length` that the encoder cannot take, or weights that
    are missing or not the expected ones.
    """
    if name not in _LOADERS:
        raise UserError(f"unknown text encoder {name!r}; known: {', '.join(sorted(_LOADERS))}")
    return _LOADERS[name](max_length)
