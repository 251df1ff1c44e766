"""The law L = E + A / N^a + B / D^b fitted to the ends of runs.

L is the validation loss (nats a bit), N the parameters, D the pictures seen.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

# Exponents outside are taken for a fit that the runs do not determine.
EXPONENTS = (0.02, 3.0)
# Where the search starts, for a and for b.
STARTS = (0.06, 0.15, 0.35, 0.8, 1.6)
RESAMPLES = 1000
PERCENT = 95
# The usual tuning of Huber's loss: 95% as efficient as least squares where the noise is normal.
_HUBER = 1.345
# Scale of residuals below which runs differ by rounding alone.
_LEAST_SIGMA = 1e-6
# With one or two residuals too many, Student's t would have losses that are not numbers.
_MOST_NOISE = 1.0
_ITERATIONS = 60
_SUBSETS = tuple([i for i in range(3) if bits & 1 << i] for bits in range(1, 8))


@dataclasses.dataclass(frozen=True)
class Law:
    """Constants of L = E + A / N^a + B / D^b: floats, or arrays of one shape."""

    E: Any
    A: Any
    a: Any
    B: Any
    b: Any

    def loss(self, parameters: Any, pictures: Any) -> Any:
        """Computes nats a bit at N and D, which broadcast with the constants."""
        return self.E + self.size_term(parameters) + self.data_term(pictures)

    def size_term(self, parameters: Any) -> Any:
        """Computes A / N^a: what a model without end would save, in nats a bit."""
        return self.A * np.asarray(parameters, float) ** -self.a

    def data_term(self, pictures: Any) -> Any:
        """Computes B / D^b: what pictures without end would save, in nats a bit."""
        return self.B * np.asarray(pictures, float) ** -self.b


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
      law: floats.
      samples: the law of each resampled table, arrays [R].
      fitted_n: float64, the law's loss of each run.
      residuals_n: float64, log of measured over fitted loss.
      noise_Rn: float64, what the resampled tables have in place of the residuals.
      sigma: robust standard deviation of the residuals, for the constants that were fitted.
    """

    law: Law
    samples: Law
    fitted_n: Float[np.ndarray, "n"]
    residuals_n: Float[np.ndarray, "n"]
    noise_Rn: Float[np.ndarray, "R n"]
    sigma: float

    @property
    def losses_Rn(self) -> Float[np.ndarray, "R n"]:
        """Returns the resampled tables' losses."""
        return self.fitted_n * np.exp(self.noise_Rn)


def fit(
    parameters_n: Float[np.ndarray, "n"],
    pictures_n: Float[np.ndarray, "n"],
    losses_n: Float[np.ndarray, "n"],
    seed: int,
    resamples: int = RESAMPLES,
) -> Fit:
    """Fits the law, and again to resampled tables.

    Huber's loss of the relative residuals, fitted / measured - 1 (for the few per cent that they are, those of log L):
    for given a and b it is convex in E, A, B >= 0, which are solved for exactly (variable projection); a and b are
    searched from all pairs of STARTS.

    The resamples keep N and D, which were chosen and not drawn, and put other residuals on the fitted losses: those
    of the fit, each divided by sqrt(1 - its leverage), centred, drawn with replacement, and as wide as their own scale
    is uncertain. Drawing whole runs instead would lose whole sizes or lengths of a small grid, and with them a or b.

    Args:
      parameters_n, pictures_n, losses_n: float64, all above 0; of N and of D three different values at least.
    """
    problem = _Problem.of(parameters_n, pictures_n)
    starts = np.log([(a, b) for a in STARTS for b in STARTS])
    # The scale of the residuals is not known yet: one so small fits nearly by absolute values, bent least by outliers.
    sigma = problem.sigma(losses_n, *problem.minimise(losses_n[None], starts, 1e-3))
    exponents, coefficients = problem.minimise(losses_n[None], starts, _HUBER * sigma)
    law = problem.law(exponents, coefficients)
    law = Law(*(float(value[0]) for value in dataclasses.astuple(law)))
    fitted_n = law.loss(parameters_n, pictures_n)
    residuals_n = np.log(losses_n / fitted_n)

    free_n = residuals_n / np.sqrt(1 - problem.leverages(law, fitted_n))
    free_n -= free_n.mean()
    random, degrees = np.random.default_rng(seed), len(free_n) - 5
    # So few residuals tell their own scale badly, as in Student's t.
    scale_R = np.sqrt(degrees / random.chisquare(degrees, resamples))
    noise_Rn = random.choice(free_n, (resamples, len(free_n))) * scale_R[:, None]
    noise_Rn = np.clip(noise_Rn, -_MOST_NOISE, _MOST_NOISE)
    starts = np.concatenate([np.log(exponents), np.log([(0.2, 0.2), (0.6, 0.6)])])
    samples = problem.law(*problem.minimise(fitted_n * np.exp(noise_Rn), starts, _HUBER * sigma))
    return Fit(law, samples, fitted_n, residuals_n, noise_Rn, sigma)


def interval(values_R: Float[np.ndarray, "R"]) -> list[float] | None:
    """Finds the middle PERCENT of resampled values that are finite; None where fewer than nine in ten are."""
    finite = values_R[np.isfinite(values_R)]
    if len(finite) < 0.9 * len(values_R) or not len(finite):
        return None
    low, high = np.percentile(finite, (50 - PERCENT / 2, 50 + PERCENT / 2))
    return [float(low), float(high)]


@dataclasses.dataclass(frozen=True)
class _Problem:
    """Where the runs are: log of N and D over their geometric means, so that the columns are near 1."""

    parameters_n: np.ndarray
    pictures_n: np.ndarray
    centre: tuple[float, float]

    @classmethod
    def of(cls, parameters_n: np.ndarray, pictures_n: np.ndarray) -> "_Problem":
        logs = np.log(parameters_n), np.log(pictures_n)
        centre = float(logs[0].mean()), float(logs[1].mean())
        return cls(logs[0] - centre[0], logs[1] - centre[1], centre)

    def minimise(
        self, losses_Rn: np.ndarray, starts_S2: np.ndarray, delta: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds for each row of losses the best of all starts: exponents [R,2] and E, A, B [R,3] at the centre.

        Levenberg-Marquardt on the logs of the exponents with weights that make least squares of Huber's loss, all rows
        and starts at once. As the weighted squares lie above Huber's loss, a step that is kept never raises it.
        """
        rows, starts = len(losses_Rn), len(starts_S2)
        y = np.repeat(losses_Rn, starts, axis=0)
        theta = np.tile(starts_S2, (rows, 1))
        coefficients, residual = self._project(theta, y, np.ones_like(y))
        cost, damping = _huber(residual, delta), np.full(len(y), 1e-2)
        active = np.arange(len(y))
        for _ in range(_ITERATIONS):
            weights = np.minimum(1, delta / np.maximum(np.abs(residual[active]), 1e-300))
            step = self._step(theta[active], y[active], weights, damping[active])
            new_theta = np.clip(theta[active] + step, *np.log(EXPONENTS))
            new_coefficients, new_residual = self._project(new_theta, y[active], weights)
            new_cost, old_cost = _huber(new_residual, delta), cost[active]
            better = new_cost < old_cost
            damping[active] = np.clip(damping[active] * np.where(better, 0.2, 4), 1e-9, 1e9)
            kept = active[better]
            theta[kept], coefficients[kept] = new_theta[better], new_coefficients[better]
            residual[kept], cost[kept] = new_residual[better], new_cost[better]
            active = active[np.abs(new_cost - old_cost) > 1e-9 * old_cost]
            if not len(active):
                break
        best = cost.reshape(rows, starts).argmin(axis=1) + starts * np.arange(rows)
        return np.exp(theta[best]), coefficients[best]

    def _step(self, theta: np.ndarray, y: np.ndarray, weights: np.ndarray, damping: np.ndarray) -> np.ndarray:
        root, epsilon = np.sqrt(weights), 1e-5
        at = self._project(theta, y, weights)[1]
        moved = [self._project(theta + epsilon * axis, y, weights)[1] for axis in np.eye(2)]
        slopes = np.stack([root * (residual - at) / epsilon for residual in moved], axis=-1)
        square = np.einsum("pni,pnj->pij", slopes, slopes)
        gradient = np.einsum("pni,pn->pi", slopes, root * at)
        diagonal = np.einsum("pii->pi", square)
        floor = 1e-12 + 1e-6 * diagonal.max(axis=1, keepdims=True)
        square = square + np.eye(2) * (damping[:, None] * np.maximum(diagonal, floor) + 1e-15)[:, None, :]
        return np.clip(-np.linalg.solve(square, gradient[..., None])[..., 0], -1, 1)

    def _project(
        self, theta: np.ndarray, y: np.ndarray, weights: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds E, A, B >= 0 that are best for these exponents; gives them and fitted / measured - 1.

        Of three numbers that must not be negative there are seven sets that may be above 0: all are solved, and the
        best one without a negative number is taken.
        """
        columns = self._columns(np.exp(theta)) / y[..., None]
        gram = np.einsum("pni,pn,pnj->pij", columns, weights, columns)
        right = np.einsum("pni,pn->pi", columns, weights)
        gram = gram + 1e-13 * np.einsum("pii->p", gram)[:, None, None] * np.eye(3)
        best, least = np.zeros_like(right), np.full(len(y), np.inf)
        for subset in _SUBSETS:
            candidate = np.zeros_like(right)
            block = gram[:, subset][:, :, subset]
            candidate[:, subset] = np.linalg.solve(block, right[:, subset, None])[..., 0]
            # Least squares at its minimum: the weights' sum less this.
            cost = -np.einsum("pi,pi->p", candidate, right)
            cost[(candidate < 0).any(axis=1)] = np.inf
            lower = cost < least
            best[lower], least[lower] = candidate[lower], cost[lower]
        return best, np.einsum("pni,pi->pn", columns, best) - 1

    def _columns(self, exponents: np.ndarray) -> np.ndarray:
        size = np.exp(-exponents[:, :1] * self.parameters_n)
        data = np.exp(-exponents[:, 1:] * self.pictures_n)
        return np.stack([np.ones_like(size), size, data], axis=-1)

    def law(self, exponents: np.ndarray, coefficients: np.ndarray) -> Law:
        """Gives the constants for N and D themselves."""
        (a, b), (E, A, B) = exponents.T, coefficients.T
        return Law(E, A * np.exp(a * self.centre[0]), a, B * np.exp(b * self.centre[1]), b)

    def sigma(self, losses_n: np.ndarray, exponents: np.ndarray, coefficients: np.ndarray) -> float:
        """Estimates the residuals' standard deviation by their median size, which a few outliers do not move."""
        residual = self._columns(exponents)[0] @ coefficients[0] / losses_n - 1
        n = len(losses_n)
        return max(1.4826 * float(np.median(np.abs(residual))) * np.sqrt(n / (n - 5)), _LEAST_SIGMA)

    def leverages(self, law: Law, fitted_n: np.ndarray) -> np.ndarray:
        """Computes the part of each run's residual that the fit takes away, at most 0.9: diagonal of the hat matrix."""
        size = law.size_term(np.exp(self.parameters_n + self.centre[0]))
        data = law.data_term(np.exp(self.pictures_n + self.centre[1]))
        terms = (np.ones_like(size), size, size * self.parameters_n, data, data * self.pictures_n)
        slopes = np.stack([term for term in terms if np.any(term)], axis=1) / fitted_n[:, None]
        left, sizes, _ = np.linalg.svd(slopes / np.linalg.norm(slopes, axis=0), full_matrices=False)
        return np.minimum(np.square(left[:, sizes > 1e-9 * sizes[0]]).sum(axis=1), 0.9)


def _huber(residual: np.ndarray, delta: float) -> np.ndarray:
    size = np.abs(residual)
    return np.where(size < delta, size**2 / 2, delta * (size - delta / 2)).sum(axis=-1)
