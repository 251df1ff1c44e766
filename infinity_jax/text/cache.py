"""Text features of a data set: computed once, kept on disk, read through a memory map."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Bool, Float16

from infinity_jax.files import caches
from infinity_jax.files.progress import counted
from infinity_jax.text.batching import bucket_length
from infinity_jax.text.encoder import TextEncoder
from infinity_jax.text.prompt import clean_prompts

_FORMAT = "1"
_BATCH = 256


def cached_features(
    encoder: TextEncoder, captions: Sequence[str], cache_dir: Path
) -> tuple[Float16[np.ndarray, "N T C"], Bool[np.ndarray, "N T"]]:
    """Returns features float16 [N,T,C], memory-mapped and read-only, and mask bool [N,T] of `captions`, in order.

    T is the padded length of the longest caption. The files in `cache_dir` are named by a hash of
    encoder, length and captions; what is missing or unreadable there is computed and written anew.
    Raises UserError for an empty caption and where the files cannot be written.
    """
    captions = clean_prompts(captions, cut=True)
    key = _cache_key(encoder, captions)
    features_path = cache_dir / f"text-{key}.features.npy"
    mask_path = cache_dir / f"text-{key}.mask.npy"
    if features_path.exists() or mask_path.exists():
        try:
            features_and_mask = _read(features_path, mask_path, len(captions), encoder.channels)
        except (OSError, ValueError, EOFError) as error:
            logging.warning("text features in %s cannot be read (%s): recomputing them", features_path, error)
        else:
            logging.info("text features of %d captions: read from %s", len(captions), features_path)
            return features_and_mask
    _compute(encoder, captions, features_path, mask_path)
    return _read(features_path, mask_path, len(captions), encoder.channels)


def _cache_key(encoder: TextEncoder, captions: Sequence[str]) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {encoder.fingerprint} {encoder.max_length}".encode())
    for caption in captions:
        # A caption has no line break once it is clean, so this separates them.
        digest.update(b"\n" + caption.encode())
    return digest.hexdigest()[:24]


def _read(
    features_path: Path, mask_path: Path, captions: int, channels: int
) -> tuple[Float16[np.ndarray, "N T C"], Bool[np.ndarray, "N T"]]:
    mask = caches.load(mask_path, mmap=False)
    features = caches.load(features_path)
    if mask.dtype != np.bool_ or mask.ndim != 2 or len(mask) != captions:
        raise ValueError(f"the mask is {mask.dtype} {mask.shape}")
    if features.dtype != np.float16 or features.shape != (*mask.shape, channels):
        raise ValueError(f"the features are {features.dtype} {features.shape}")
    return features, mask


def _compute(encoder: TextEncoder, captions: list[str], features_path: Path, mask_path: Path) -> None:
    different = sorted(set(captions))
    counts = encoder.token_counts(different)
    # Texts in order of length, so that little of a batch is padding.
    order = np.argsort(counts, kind="stable")
    texts, counts = [different[i] for i in order], counts[order]
    index = {text: i for i, text in enumerate(texts)}
    text_of_caption = np.array([index[caption] for caption in captions])
    length = bucket_length(int(counts[-1]), encoder.max_length)
    mask = (np.arange(length) < counts[:, None])[text_of_caption]
    shape = (len(captions), length, encoder.channels)
    with caches.writing(features_path, np.dtype(np.float16).itemsize * int(np.prod(shape))) as temporary:
        features = caches.reserve(temporary, shape, np.float16)
        by_text = np.argsort(text_of_caption, kind="stable")
        for start, batch in _encode_in_batches(encoder, texts):
            begin, end = np.searchsorted(text_of_caption[by_text], [start, start + len(batch)])
            rows = by_text[begin:end]
            features[rows, : batch.shape[1]] = batch[text_of_caption[rows] - start]
        features.flush()
    with caches.writing(mask_path, mask.nbytes) as temporary, open(temporary, "wb") as file:
        np.save(file, mask)


def _encode_in_batches(encoder: TextEncoder, texts: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index of a batch's first text, its features float32 [b,t,C]) for all texts, and shows the progress."""
    starts = range(0, len(texts), _BATCH)
    batches = ((start, encoder.encode(texts[start : start + _BATCH])[0]) for start in starts)
    return counted(batches, "encoding captions", len(texts), "captions", lambda batch: len(batch[1]))
