"""The compute-optimal frontier: the N and D that the law prefers at a given training FLOP."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from infinity_jax.tools.scaling.law import Law
from infinity_jax.tools.scaling.runs import Run, column, sizes

# The frontier is drawn this far beyond the largest run, marked as extrapolated.
BEYOND = 100
_POINTS = 25


@dataclasses.dataclass(frozen=True)
class Cost:
    """FLOP of a training, C = kappa N^gamma D; gamma is 1 where all work is in proportion to the parameters.

    `spread` is the largest relative distance of a run from it.
    """

    kappa: float
    gamma: float
    spread: float

    def flop(self, parameters: Any, pictures: Any) -> Any:
        """Computes C."""
        return self.kappa * np.asarray(parameters, float) ** self.gamma * pictures

    def pictures(self, parameters: Any, flop: Any) -> Any:
        """Computes the D that a model of N parameters sees for C."""
        return flop / (self.kappa * np.asarray(parameters, float) ** self.gamma)


def cost_of(runs: Sequence[Run]) -> Cost:
    """Fits the cost to the FLOP column of the table, one point for each size (mean of logs)."""
    groups = sizes(runs)
    log_sizes = np.log([group[0].parameters for group in groups])
    per_picture = [np.log(column(group, "flop") / column(group, "pictures")).mean() for group in groups]
    gamma, log_kappa = np.polyfit(log_sizes, per_picture, 1)
    cost = Cost(float(np.exp(log_kappa)), float(gamma), 0.0)
    fitted = cost.flop(column(runs, "parameters"), column(runs, "pictures"))
    return dataclasses.replace(cost, spread=float(np.abs(column(runs, "flop") / fitted - 1).max()))


@dataclasses.dataclass(frozen=True)
class Frontier:
    """N_opt = G (C / kappa)^size_exponent and D_opt = G^-gamma (C / kappa)^data_exponent; floats, or arrays [R].

    With gamma = 1, size_exponent = b / (a + b) and data_exponent = a / (a + b).
    """

    G: Any
    size_exponent: Any
    data_exponent: Any
    cost: Cost

    def parameters(self, flop: Any) -> Any:
        """Computes N_opt."""
        return self.G * (flop / self.cost.kappa) ** self.size_exponent

    def pictures(self, flop: Any) -> Any:
        """Computes D_opt."""
        return self.G**-self.cost.gamma * (flop / self.cost.kappa) ** self.data_exponent


def frontier_of(law: Law, cost: Cost) -> Frontier:
    """Finds the minimum of the law at C = kappa N^gamma D, in closed form; NaN where A, B or gamma is 0.

    There the derivative along N is 0: a A N^-a = gamma b B D^-b.
    """
    total = law.a + cost.gamma * law.b
    with np.errstate(divide="ignore", invalid="ignore"):
        G = np.exp(
            (np.log(law.a) + np.log(law.A) - np.log(cost.gamma) - np.log(law.b) - np.log(law.B)) / total
        )
    defined = (np.asarray(law.A) > 0) & (np.asarray(law.B) > 0) & (cost.gamma > 0)
    G = np.where(defined, G, np.nan)[()]
    return Frontier(G, law.b / total, law.a / total, cost)


def levels(runs: Sequence[Run]) -> np.ndarray:
    """Spreads FLOP from the cheapest run's to BEYOND times the dearest's, evenly in the log, float64 [n]."""
    flops = column(runs, "flop")
    inside = np.geomspace(flops.min(), flops.max(), _POINTS)
    return np.append(inside, np.geomspace(flops.max(), BEYOND * flops.max(), _POINTS)[1:])


def outside(runs: Sequence[Run], parameters: Any, pictures: Any, flop: Any) -> list[str]:
    """Says which of "N", "D", "C" lie outside the runs' own, beyond rounding: there a prediction is extrapolated."""
    return [
        letter
        for letter, name, value in zip(
            "NDC", ("parameters", "pictures", "flop"), (parameters, pictures, flop), strict=True
        )
        if not column(runs, name).min() * (1 - 1e-6) <= value <= column(runs, name).max() * (1 + 1e-6)
    ]
