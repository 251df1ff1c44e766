"""Texts of many lengths through a jitted encoder: a few padded shapes, one program for each."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import logging
from jaxtyping import Array, Bool, Float, Int, PyTree
from tokenizers import Tokenizer

from infinity_jax.errors import UserError
from infinity_jax.text.prompt import clean_prompts, truncate_tokens

_SHORTEST = 8
_TOKENS_PER_CALL = 512


def bucket_length(tokens: int, max_length: int) -> int:
    """Returns the padded length for `tokens` tokens: 8, 16, 32, ... but never above `max_length`."""
    return min(max(_SHORTEST, 1 << (tokens - 1).bit_length()), max_length)


class BatchedEncoder:
    """What the text encoders have in common: texts of many lengths become features through one jitted model.

    Attributes:
      name, max_length, channels, fingerprint: see `TextEncoder`.
      params: nested dict of arrays, of the float type that they are stored in.
    """

    name: str

    def __init__(
        self,
        lengths: range,
        max_length: int,
        channels: int,
        params: PyTree,
        tokenizer: Tokenizer,
        fingerprint: str,
    ):
        """`lengths` are those that `max_length` may be; UserError for another one.

        `params` that are NumPy arrays move to the default device at the first use, unless `place` laid them out before.
        """
        if max_length not in lengths:
            raise UserError(
                f"text length {max_length} is impossible with the text encoder {self.name!r}:"
                f" choose {lengths[0]} to {lengths[-1]} tokens"
            )
        self.max_length, self.channels, self.fingerprint = max_length, channels, fingerprint
        self.params = params
        # Padding and truncation are ours (buckets, and a warning), not the file's.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._apply = jax.jit(self.apply)

    def apply(
        self, params: PyTree, ids_BT: Int[Array, "B T"], mask_BT: Bool[Array, "B T"]
    ) -> Float[Array, "B T C"]:
        """Computes features float32, a pure function that can be jitted; what it gives at padding means nothing."""
        raise NotImplementedError

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of texts, start and end tokens included."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]

    def _is_unknown(self, ids: list[int]) -> bool:
        """Tells whether no token of a text is known."""
        raise NotImplementedError

    def token_counts(self, texts: Sequence[str]) -> Int[np.ndarray, " B"]:
        """See `TextEncoder.token_counts`."""
        counts = [min(len(ids), self.max_length) for ids in self._tokenize(clean_prompts(texts, cut=True))]
        return np.array(counts, np.int32)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """See `TextEncoder.tokens`. A prompt without one known word is logged."""
        texts = clean_prompts(texts, cut=True)
        token_ids = self._tokenize(texts)
        for text, ids in zip(texts, token_ids, strict=True):
            if self._is_unknown(ids):
                logging.warning(
                    "prompt %r has no character that the text encoder knows; use words", text[:40]
                )
        return truncate_tokens(token_ids, texts, self.max_length)

    def encode(self, texts: Sequence[str]) -> tuple[Float[np.ndarray, "B T C"], Bool[np.ndarray, "B T"]]:
        """See `TextEncoder.encode`. A prompt without one known word is logged."""
        if any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(self.params)):
            self.params = jax.device_put(self.params)
        return encode_in_buckets(
            self.tokens(texts),
            lambda ids, mask: np.asarray(self._apply(self.params, ids, mask)),
            self.max_length,
        )


def encode_in_buckets(
    token_ids: Sequence[list[int]],
    apply: Callable[[Int[np.ndarray, "rows T"], Bool[np.ndarray, "rows T"]], Float[np.ndarray, "rows T C"]],
    max_length: int,
) -> tuple[Float[np.ndarray, "B T C"], Bool[np.ndarray, "B T"]]:
    """Encodes texts given as token ids: features float32 [B,T,C] (zero at padding) and mask bool [B,T].

    T is the bucket of the longest text. `apply` sees each text in its own bucket and always the same
    number of rows for a bucket, so it is compiled once per bucket and a text's features do not depend
    on the texts beside it.
    """
    counts = np.array([len(ids) for ids in token_ids])
    buckets = np.array([bucket_length(count, max_length) for count in counts.tolist()])
    mask_BT = np.arange(buckets.max()) < counts[:, None]
    features_BTC: np.ndarray | None = None
    for length in np.unique(buckets):
        rows = max(1, _TOKENS_PER_CALL // int(length))
        members = np.flatnonzero(buckets == length)
        for start in range(0, len(members), rows):
            chosen = members[start : start + rows]
            ids, mask = np.zeros((rows, length), np.int32), np.zeros((rows, length), bool)
            mask[: len(chosen)] = mask_BT[chosen, :length]
            ids[mask] = np.concatenate([token_ids[i] for i in chosen])
            features = np.asarray(apply(ids, mask), np.float32) * mask[..., None]
            if features_BTC is None:
                features_BTC = np.zeros((*mask_BT.shape, features.shape[-1]), np.float32)
            features_BTC[chosen, :length] = features[: len(chosen)]
    assert features_BTC is not None, "no texts"
    return features_BTC, mask_BT
