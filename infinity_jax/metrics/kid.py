"""KID, the kernel inception distance, and EffNet-KID: the same on EfficientNet-Lite0 features instead of Inception's.

Source: Binkowski et al., Demystifying MMD GANs, arXiv 1801.01401, section 4: the unbiased estimate of the squared
maximum mean discrepancy with the kernel (x.y / d + 1)^3. Values of EffNet-KID cannot be compared with KID or FID
numbers of papers, which use other features.
"""

import numpy as np
from jaxtyping import Float

JACKKNIFE_GROUPS = 20
FEWEST = 4
_ROWS = 1024  # of the kernel in memory at a time


def kid(features_a: Float[np.ndarray, "M D"], features_b: Float[np.ndarray, "N D"]) -> tuple[float, float]:
    """Returns (value, standard error) of KID between two sets of features, each with at least 4 pictures.

    The value is the unbiased estimate over all pairs, so it may be slightly negative for equal distributions. The
    standard error is the delete-a-group jackknife: the estimate is repeated without each of (up to) 20 interleaved
    groups of pictures. The order of the pictures should say nothing about them. Computed in float64.

    Raises ValueError for too few pictures, unequal numbers of features, or values that are not finite.
    """
    a, b = (np.asarray(features, np.float64) for features in (features_a, features_b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < FEWEST:
        raise ValueError(
            f"KID takes two arrays [pictures >= {FEWEST}, features], got {a.shape} and {b.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("KID got features that are not finite; look for NaN in the pictures or the weights")
    groups = min(JACKKNIFE_GROUPS, len(a), len(b))
    within_a, within_b = (_group_sums(x, x, groups, leave_out_self=True) for x in (a, b))
    across = _group_sums(a, b, groups, leave_out_self=False)
    counts_a, counts_b = (np.bincount(np.arange(len(x)) % groups) for x in (a, b))

    def estimate(keep: np.ndarray) -> float:
        m, n = counts_a[keep].sum(), counts_b[keep].sum()
        sums = [block[np.ix_(keep, keep)].sum() for block in (within_a, within_b, across)]
        return sums[0] / (m * (m - 1)) + sums[1] / (n * (n - 1)) - 2 * sums[2] / (m * n)

    everything = np.arange(groups)
    left_out = np.array([estimate(np.delete(everything, group)) for group in everything])
    variance = (groups - 1) / groups * np.square(left_out - left_out.mean()).sum()
    return float(estimate(everything)), float(np.sqrt(variance))


effnet_kid = kid  # its name on EfficientNet's features


def kernel(a_MD: Float[np.ndarray, "M D"], b_ND: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "M N"]:
    """Computes the kernel of KID between all pictures of two sets of features: (x.y / d + 1)^3."""
    return (a_MD @ b_ND.T / a_MD.shape[1] + 1.0) ** 3


def _group_sums(a_MD: np.ndarray, b_ND: np.ndarray, groups: int, leave_out_self: bool) -> np.ndarray:
    """[groups, groups] sums of the kernel over the pictures of each pair of groups; picture i is in i % groups."""
    member_Mg, member_Ng = (np.eye(groups)[np.arange(len(x)) % groups] for x in (a_MD, b_ND))
    sums = np.zeros((groups, groups))
    # Of 30,000 pictures the whole kernel would fill 7 GB.
    for start in range(0, len(a_MD), _ROWS):
        rows = slice(start, min(start + _ROWS, len(a_MD)))
        kernel_mN = kernel(a_MD[rows], b_ND)
        if leave_out_self:
            np.fill_diagonal(kernel_mN[:, rows], 0.0)
        sums += member_Mg[rows].T @ kernel_mN @ member_Ng
    return sums
