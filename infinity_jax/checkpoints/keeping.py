"""Which of a run's checkpoints are kept: the newest, those of every so many steps, and the best by a metric."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from orbax.checkpoint.checkpoint_managers import preservation_policy as preservation

# Words in a metric's name that say that less of it is better; of all other metrics more is better.
LOWER_IS_BETTER = frozenset(("loss", "kid", "fid", "lpips", "error"))


def lower_is_better(name: str) -> bool:
    """Tells whether the smallest value of a metric is the best: by the words of its name, as in "validation_loss"."""
    return bool(LOWER_IS_BETTER & set(name.lower().split("_")))


def policy(keep: int | None, keep_every: int, keep_best: str) -> preservation.PreservationPolicy:
    """Builds orbax's policy; arguments as in `run.Checkpointer`."""
    policies: list[preservation.PreservationPolicy] = [preservation.LatestN(keep)]
    if keep_every:
        policies.append(preservation.EveryNSteps(keep_every))
    if keep_best:
        policies.append(
            preservation.BestN(get_metric_fn=score(keep_best), n=1, keep_checkpoints_without_metrics=False)
        )
    return preservation.AnyPreservationPolicy(policies)


def score(name: str) -> Callable[[Mapping[str, Any]], float]:
    """Makes the function that rates metrics by the one called `name`: the best has the largest number.

    Which end is the best: `lower_is_better`. Without a value the function gives minus infinity.
    """
    sign = -1.0 if lower_is_better(name) else 1.0

    def rate(metrics: Mapping[str, Any]) -> float:
        value = sign * metrics.get(name, math.nan)
        return -math.inf if math.isnan(value) else value

    return rate
