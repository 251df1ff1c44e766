"""FID: the Frechet distance between two sets of pictures, as Gaussians in the features of Inception-v3.

Source: Heusel et al., arXiv 1706.08500, equation 6; the features are those of `inception`.
"""

import numpy as np
from absl import logging
from jaxtyping import Float

from infinity_jax.metrics.inception import FEATURES


def fid(features_a: Float[np.ndarray, "M D"], features_b: Float[np.ndarray, "N D"]) -> float:
    """Computes FID between two sets of features, each with at least 2 pictures.

    It falls as pictures are added, so compare values of equal numbers of pictures only. Raises ValueError for too few
    pictures.
    """
    if min(len(features_a), len(features_b)) < 2:
        raise ValueError(f"FID takes 2 pictures or more, got {len(features_a)} and {len(features_b)}")
    warn_of_few(len(features_a), len(features_b))
    return frechet_distance(*mean_and_covariance(features_a), *mean_and_covariance(features_b))


def warn_of_few(pictures_a: int, pictures_b: int) -> None:
    """Warns that FID of so few pictures cannot be compared with published values."""
    if min(pictures_a, pictures_b) <= FEATURES:
        text = "FID of %d and %d pictures is far above that of many: papers take 10,000 to 50,000"
        logging.warning(text, pictures_a, pictures_b)


def mean_and_covariance(
    features_ND: Float[np.ndarray, "N D"],
) -> tuple[Float[np.ndarray, " D"], Float[np.ndarray, "D D"]]:
    """Computes the float64 mean [D] and covariance [D,D] (divided by N - 1) of features."""
    features = np.asarray(features_ND, np.float64)
    return features.mean(axis=0), np.cov(features, rowvar=False)


def frechet_distance(
    mean_a: Float[np.ndarray, " D"],
    covariance_a: Float[np.ndarray, "D D"],
    mean_b: Float[np.ndarray, " D"],
    covariance_b: Float[np.ndarray, "D D"],
) -> float:
    """Computes the squared Frechet distance of two Gaussians: |a - b|^2 + tr(A + B - 2 (A B)^(1/2)), in float64.

    (A B)^(1/2) has the trace of (A^(1/2) B A^(1/2))^(1/2), which is symmetric: its eigenvalues are real, and singular
    covariances (of few pictures) need no correction.
    """
    values, vectors = np.linalg.eigh(covariance_a)
    root_a = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    squares = np.linalg.eigvalsh(root_a @ covariance_b @ root_a)
    across = np.sqrt(np.maximum(squares, 0.0)).sum()
    apart = np.square(mean_a - mean_b).sum()
    return float(apart + np.trace(covariance_a) + np.trace(covariance_b) - 2.0 * across)
