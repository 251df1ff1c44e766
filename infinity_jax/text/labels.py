"""Labels in the place of captions: a "text encoder" without weights, of names of classes or their numbers."""

import difflib
import hashlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from infinity_jax.config import LABEL_CHANNELS
from infinity_jax.errors import UserError
from infinity_jax.runtime.sharding import Layout
from infinity_jax.text.prompt import clean_prompts
from infinity_jax.transformer.conditions import digits


class LabelEncoder:
    """Turns names of classes, or their numbers, into labels; see `TextEncoder`. A label is one token of two channels.

    Attributes:
      names: of the classes, in the order of their numbers; () where only numbers are known.
      classes: how many there are.
    """

    name = "labels"
    channels = LABEL_CHANNELS
    max_length = 1

    def __init__(self, classes: int, names: Sequence[str] = ()):
        """UserError where the names are not as many as there are classes, or not different."""
        self.classes, self.names = classes, tuple(names)
        if self.names and len(set(self.names)) != classes:
            raise UserError(
                f"text.labels has {len(set(self.names))} different names for text.classes {classes}; give one for "
                "each, or none"
            )
        self._numbers = {name: number for number, name in enumerate(self.names)}
        self.params: PyTree = {}
        self.fingerprint = hashlib.sha256(
            "\n".join(["labels", str(classes), *self.names]).encode()
        ).hexdigest()

    def number(self, text: str) -> int:
        """Finds the label of a class's name or number. Raises UserError for another text."""
        if text in self._numbers:
            return self._numbers[text]
        if text.isdecimal():
            if int(text) < self.classes:
                return int(text)
            raise UserError(f"class {text} is unknown; this model has the classes 0 to {self.classes - 1}")
        near = difflib.get_close_matches(text, self.names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"give a number from 0 to {self.classes - 1}"
        raise UserError(f"class {text!r} is unknown; {hint}")

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Finds the labels of texts, each as the only token of its text; errors as of `number`."""
        return [[self.number(text)] for text in clean_prompts(texts)]

    def token_counts(self, texts: Sequence[str]) -> Int[np.ndarray, " B"]:
        """Counts one token a text."""
        return np.ones(len(texts), np.int32)

    def flops(self, tokens: int) -> int:
        """Counts nothing: labels are not computed."""
        return 0

    def apply(
        self, params: PyTree, ids_BT: Int[Array, "B T"], mask_BT: Bool[Array, "B T"]
    ) -> Float[Array, "B T C"]:
        """Writes labels as features, see `conditions.digits`."""
        return digits(ids_BT)

    def encode(self, texts: Sequence[str]) -> tuple[Float[np.ndarray, "B T C"], Bool[np.ndarray, "B T"]]:
        """Returns features float32 [B,1,2] and a mask that is all True; errors as of `number`."""
        features = digits(jnp.array(self.tokens(texts), jnp.int32))
        return np.asarray(features), np.ones((len(texts), 1), bool)

    def place(self, layout: Layout) -> None:
        """Has nothing to lay out."""
