"""EfficientNet features of all real pictures of a data set, computed once and kept on disk."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging
from jaxtyping import Float, UInt8

from infinity_jax.files import caches, paths
from infinity_jax.metrics.efficientnet import METRIC_SIZE, load_efficientnet, picture_features

_CHUNK = 512


def gallery_features(
    image_NHW3: UInt8[np.ndarray, "N H W 3"], cache_dir: Path | None = None
) -> Float[np.ndarray, "N 1280"]:
    """Returns features float32 [N,1280] of uint8 pictures, from the cache where the same pictures were seen before."""
    name = hashlib.sha256(np.ascontiguousarray(image_NHW3).tobytes()).hexdigest()[:24]
    path = (cache_dir or paths.data_dir() / "features") / f"gallery-{METRIC_SIZE}-{name}.npy"
    if path.exists():
        try:
            return np.load(path)
        except (OSError, ValueError, EOFError) as error:
            logging.warning("picture features in %s cannot be read (%s): recomputing them", path, error)
    features = features_of(image_NHW3)
    with caches.writing(path, features.nbytes) as temporary, open(temporary, "wb") as file:
        np.save(file, features)
    return features


def features_of(images: Sequence[np.ndarray] | np.ndarray) -> Float[np.ndarray, "N 1280"]:
    """Computes features float32 [N,1280] of uint8 pictures, which are not cached; the progress is logged."""
    variables = load_efficientnet()
    parts = []
    for start in range(0, len(images), _CHUNK):
        parts.append(picture_features(variables, np.asarray(images[start : start + _CHUNK])))
        if len(images) > _CHUNK:
            logging.info("picture features: %d of %d", min(start + _CHUNK, len(images)), len(images))
    return np.concatenate(parts)
