"""95% intervals from pictures drawn again with replacement (Efron's bootstrap, percentiles)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from infinity_jax.metrics.kid import kernel

RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)


def mean_interval(values_N: Float[np.ndarray, " N"], seed: int = 0) -> tuple[float, float]:
    """Returns (low, high) of the mean of one number a picture."""
    counts_RN = _drawn(len(values_N), np.random.default_rng(seed))
    return _percentiles(counts_RN @ values_N.astype(np.float64) / len(values_N))


def mean_of_means_interval(groups: Sequence[Float[np.ndarray, "_"]], seed: int = 0) -> tuple[float, float]:
    """Returns (low, high) of the mean over groups of each group's mean of one number a picture."""
    random = np.random.default_rng(seed)
    means = [
        _drawn(len(values_N), random) @ values_N.astype(np.float64) / len(values_N) for values_N in groups
    ]
    return _percentiles(np.mean(means, axis=0))


def kid_interval(
    features_a: Float[np.ndarray, "M D"], features_b: Float[np.ndarray, "N D"], seed: int = 0
) -> tuple[float, float]:
    """Returns (low, high) of EffNet-KID between two sets of features, both drawn again.

    A picture drawn twice is no pair of two pictures: such pairs are left out, else every resample would look less
    varied than the data and the interval would lie too high.
    """
    return _percentiles(_kid_estimates(features_a, features_b, seed))


def kid_change_interval(
    features_before: Float[np.ndarray, "M D"],
    features_after: Float[np.ndarray, "M D"],
    features_b: Float[np.ndarray, "N D"],
    seed: int = 0,
) -> tuple[float, float]:
    """Returns (low, high) of the change of EffNet-KID against a set; row i before and after is of the same picture."""
    before, after = (_kid_estimates(a, features_b, seed) for a in (features_before, features_after))
    return _percentiles(after - before)


def _kid_estimates(features_a: np.ndarray, features_b: np.ndarray, seed: int) -> np.ndarray:
    """Estimates EffNet-KID of each resample [RESAMPLES]; sets of equal size are resampled alike."""
    a, b = (np.asarray(features, np.float64) for features in (features_a, features_b))
    random = np.random.default_rng(seed)
    counts_RM, counts_RN = _drawn(len(a), random), _drawn(len(b), random)
    across = ((counts_RM @ kernel(a, b)) * counts_RN).sum(axis=1) / (len(a) * len(b))
    return _within(a, counts_RM) + _within(b, counts_RN) - 2 * across


def _drawn(n: int, random: np.random.Generator) -> np.ndarray:
    """Draws how often each of n pictures is in each resample, float64 [RESAMPLES, n]."""
    return random.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float64)


def _within(features_ND: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
    """Averages the kernel over the pairs of different pictures of each resample, [RESAMPLES]; NaN if it has no pair."""
    kernel_NN = kernel(features_ND, features_ND)
    np.fill_diagonal(kernel_NN, 0.0)
    pairs_R = counts_RN.sum(axis=1) ** 2 - (counts_RN**2).sum(axis=1)
    return ((counts_RN @ kernel_NN) * counts_RN).sum(axis=1) / np.where(pairs_R > 0, pairs_R, np.nan)


def _percentiles(estimates_R: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(estimates_R[np.isfinite(estimates_R)], PERCENTILES)
    return float(low), float(high)
