"""Texts of many lengths through a jitted encoder: a few padded shapes, one program for each."""

from collections.abc import Callable, Sequence

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int

from infinity_jax.text.prompt import truncate_tokens

_SHORTEST = 8
_TOKENS_PER_CALL = 512


def bucket_length(tokens: int, max_length: int) -> int:
    """Returns the padded length for `tokens` tokens: 8, 16, 32, ... but never above `max_length`."""
    return min(max(_SHORTEST, 1 << (tokens - 1).bit_length()), max_length)


def encode_texts(
    texts: Sequence[str],
    tokenize: Callable[[Sequence[str]], list[list[int]]],
    says_nothing: Callable[[list[int]], bool],
    apply: Callable[[Int[np.ndarray, "rows T"], Bool[np.ndarray, "rows T"]], Float[np.ndarray, "rows T C"]],
    max_length: int,
) -> tuple[Float[np.ndarray, "B T C"], Bool[np.ndarray, "B T"]]:
    """Encodes clean texts as `encode_in_buckets` does; longer ones are cut.

    Args:
      tokenize: texts to token ids, start and end tokens included.
      says_nothing: whether no token of a text is known; that is logged.
      apply, max_length: as in `encode_in_buckets`.
    """
    token_ids = tokenize(texts)
    for text, ids in zip(texts, token_ids, strict=True):
        if says_nothing(ids):
            logging.warning("prompt %r has no character that the text encoder knows; use words", text[:40])
    return encode_in_buckets(truncate_tokens(token_ids, texts, max_length), apply, max_length)


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
    buckets = np.array([bucket_length(len(ids), max_length) for ids in token_ids])
    mask_BT = np.zeros((len(token_ids), buckets.max()), bool)
    features_BTC: np.ndarray | None = None
    for length in np.unique(buckets):
        rows = max(1, _TOKENS_PER_CALL // int(length))
        members = np.flatnonzero(buckets == length)
        for start in range(0, len(members), rows):
            chosen = members[start : start + rows]
            ids, mask = _pad([token_ids[i] for i in chosen], rows, int(length))
            features = np.asarray(apply(ids, mask), np.float32) * mask[..., None]
            if features_BTC is None:
                features_BTC = np.zeros((*mask_BT.shape, features.shape[-1]), np.float32)
            features_BTC[chosen, :length] = features[: len(chosen)]
            mask_BT[chosen, :length] = mask[: len(chosen)]
    assert features_BTC is not None, "no texts"
    return features_BTC, mask_BT


def _pad(
    token_ids: list[list[int]], rows: int, length: int
) -> tuple[Int[np.ndarray, "rows T"], Bool[np.ndarray, "rows T"]]:
    ids = np.zeros((rows, length), np.int32)
    mask = np.zeros((rows, length), bool)
    for row, text_ids in enumerate(token_ids):
        ids[row, : len(text_ids)] = text_ids
        mask[row, : len(text_ids)] = True
    return ids, mask
