"""Which scales a batch of the tokenizer's training uses (docs/spec.md section 2)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from infinity_jax import scales
from infinity_jax.runtime import seeds
from infinity_jax.scales import ScaleSchedule


@dataclasses.dataclass(frozen=True)
class TrainingScales:
    """A schedule, of which each batch uses some scales; the last always.

    Attributes:
      schedule: all of them.
      drop: each other scale is left out with this probability; "dense" training.
      short: half of the batches use only so many scales, drawn evenly; "short" training. 0 is never.
    """

    schedule: ScaleSchedule
    drop: float = 0.0
    short: int = 0

    def draw_kept(self, key: Key[Array, ""], step: Int[Array, ""]) -> Bool[Array, " K"]:
        """Which scales the batch of a step uses: bool [K]."""
        n = self.schedule.n_scales
        key_drop = seeds.stream(key, "scale drop", step)
        keep_K = jax.random.bernoulli(key_drop, 1.0 - self.drop, (n,))
        if 0 < self.short < n:
            key_short, key_which = jax.random.split(seeds.stream(key, "short schedule", step))
            chosen_K = jnp.append(jax.random.permutation(key_which, n - 1) < self.short - 1, True)
            keep_K &= chosen_K | ~jax.random.bernoulli(key_short, 0.5)
        return keep_K.at[-1].set(True)


def training_scales(kind: str, test_schedule: ScaleSchedule, drop: float, short: int) -> TrainingScales:
    """The scales to train on towards a square `test_schedule`: "dense" or "short"."""
    if kind == "short":
        return TrainingScales(test_schedule, short=short)
    return TrainingScales(scales.dense_schedule(test_schedule.last[0]), drop=drop)
