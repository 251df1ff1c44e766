"""VAR's progressive training: a run begins with the first scales, and the others join one by one (docs/spec_var.md 4).

Later scales depend on earlier ones alone: a step without the last ones is else the same. Each number of scales is a
branch of the one compiled step.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from infinity_jax.scales import ScaleSchedule
from infinity_jax.training.transformer_losses import code_loss
from infinity_jax.transformer.transformer import Transformer

_LEAST_WEIGHT = 0.01  # of a scale that has just joined


def join_steps(first: int, n_scales: int, share: float, warmup: int, steps: int) -> Int[np.ndarray, " n"]:
    """Finds the step, from 0, at which the scales with the numbers `first` - 1, `first`, ... come in: int64.

    Args:
      first: how many scales a run begins with.
      share: of the run, at which all are in.
      warmup: steps without a change at the beginning.
      steps: length of the run.
    """
    numbers = np.arange(steps)
    progress = np.clip((numbers - warmup) / max(1.0, share * steps - warmup), 0, 1)
    newest = first - 1 + np.round(progress * (n_scales - first))
    newest = np.where(numbers <= warmup, first - 1, np.where(numbers > share * steps, n_scales - 1, newest))
    return np.searchsorted(newest, np.arange(first - 1, n_scales))


def newest_scale(joins: Int[np.ndarray, " n"], step: Any) -> Int[Array, ""]:
    """Counts the scales of `join_steps` that have joined by a step, beyond those that the run began with."""
    return jnp.searchsorted(jnp.asarray(joins), step, side="right") - 1


def make_gradient(
    model: Transformer,
    schedule: ScaleSchedule,
    joins: Int[np.ndarray, " n"],
    ramp: int,
    label_smoothing: float,
) -> Callable[[Any], Callable[[PyTree, dict[str, Array]], Any]]:
    """Makes the function from a step to (params, examples) -> ((loss, metrics), gradient).

    Args:
      schedule: of all scales.
      joins: see `join_steps`.
      ramp: steps over which the loss of a scale that has joined grows to its full weight.
      label_smoothing: see `code_loss`.
    """
    first = schedule.n_scales - len(joins) + 1

    def loss_of(count: int, weight: jax.Array, params: PyTree, examples: dict[str, Array]) -> Any:
        prefix = schedule.prefix(count)
        logits = cast(Any, model.apply)(
            {"params": params},
            examples["inputs"][:, : prefix.length - 1],
            examples["text"].astype(jnp.float32),
            examples["text_mask"],
            prefix,
            examples["drop"],
            examples["path_factors"].transpose(1, 2, 0),
        )
        # Tokens weigh what they do among those of all scales.
        factors = jnp.ones(count).at[-1].set(weight) * (prefix.length / schedule.length)
        codes = examples["bits"][:, : prefix.length]
        loss, metrics = code_loss(logits, codes, prefix, "uniform", label_smoothing, factors)
        return loss, {name: _filled(name, x, schedule.n_scales) for name, x in metrics.items()}

    def branch(count: int, weight: jax.Array, params: PyTree, examples: dict[str, Array]) -> Any:
        return jax.value_and_grad(functools.partial(loss_of, count, weight), has_aux=True)(params, examples)

    branches = [functools.partial(branch, count) for count in range(first, schedule.n_scales + 1)]

    def of_step(step: Any) -> Callable[[PyTree, dict[str, Array]], Any]:
        newest = newest_scale(joins, step)
        since = step - jnp.asarray(joins)[newest]
        weight = jnp.where(newest == 0, 1.0, jnp.clip(since / max(1, ramp), _LEAST_WEIGHT, 1.0))
        return lambda params, examples: jax.lax.switch(newest, branches, weight, params, examples)

    return of_step


def _filled(name: str, x: Float[Array, "..."], n_scales: int) -> Float[Array, "..."]:
    """Fills up the numbers of scales with 0 for those that have not joined, so that branches have one shape."""
    return jnp.pad(x, (0, n_scales - len(x))) if name.endswith("_per_scale") else x
