"""AdamW with its learning-rate schedule and the choice of parameters that are not decayed (docs/spec.md section 6)."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from infinity_jax.errors import UserError
from infinity_jax.fields import Checked, OneOf, Positive, Range, Share, ShareBelowOne, Weight, WholeNumber
from infinity_jax.runtime.trees import parameter_name

SCHEDULES = ("constant", "cosine", "drop", "linear", "bent", "exponential")


@dataclasses.dataclass(frozen=True)
class OptimConfig(Checked):
    """How parameters are updated.

    Attributes:
      learning_rate: the highest rate.
      warmup_steps: steps over which the rate grows linearly.
      warmup_start: the rate of the first of them, as a fraction of `learning_rate`; 0 is one step's share, so that no
        step is without effect.
      schedule: "constant"; "cosine" down to `final_fraction` of the rate at the run's last step; "drop" to that at
        `drop_at`; or as in VAR: "linear" or "exponential" down to that from `hold` on; or "bent", two lines down to
        that, which meet at `hold`, halfway between the highest rate and where a single line would be.
      hold: of VAR's schedules, a fraction of the steps after the warm-up: for so long the rate of the first two stays.
      final_fraction: the last rate, as a fraction of `learning_rate`.
      drop_at: where the rate drops, as a fraction of the run's steps.
      b1, b2: AdamW's betas.
      weight_decay: decoupled decay, times the learning rate, of the parameters that are decayed.
      decay_all: every parameter is decayed, also biases, norms, embeddings and positions.
      final_weight_decay: what it becomes by half a cosine at the run's last step; negative keeps it.
      clip: largest global norm of the gradients.
      ema_decay: decay of the parameters' moving average; 0 means that none is kept.
      first_moment_dtype: what AdamW's mean of the gradients is kept in. The mean of their squares stays float32: a
        change of less than 1/512 of it would be lost in bfloat16, and it changes by at most 1 - b2 of itself a step.
      accumulate: steps whose mean gradient makes one update of the parameters. A batch has one aspect ratio, so this is
        how several ratios meet in an update; it then has `accumulate` times the pictures of a batch.
    """

    learning_rate: Annotated[float, Range(above=0, at_most=1e3)] = 6e-5
    warmup_steps: WholeNumber = 100
    warmup_start: ShareBelowOne = 0.0
    schedule: Annotated[str, OneOf(SCHEDULES)] = "constant"
    final_fraction: Share = 0.1
    drop_at: ShareBelowOne = 0.9
    hold: ShareBelowOne = 0.0
    b1: ShareBelowOne = 0.9
    b2: ShareBelowOne = 0.97
    weight_decay: Weight = 0.01
    decay_all: bool = False
    final_weight_decay: Annotated[float, Range(-1, 1e3)] = -1.0
    clip: Positive = 5.0
    ema_decay: ShareBelowOne = 0.999
    first_moment_dtype: Annotated[str, OneOf(("float32", "bfloat16"))] = "float32"
    accumulate: Annotated[int, Range(1, 2**16)] = 1

    @property
    def state_bytes(self) -> int:
        """Counts the bytes that are kept of a parameter: itself, both moments, and what else of its size there is."""
        first = 4 if self.first_moment_dtype == "float32" else 2
        return 4 + first + 4 + (4 if self.ema_decay else 0) + (4 if self.accumulate > 1 else 0)


def _linear(config: OptimConfig) -> Callable[[Any], Any]:
    return lambda share: (
        1 + (config.final_fraction - 1) * jnp.maximum(0, share - config.hold) / (1 - config.hold)
    )


def _exponential(config: OptimConfig) -> Callable[[Any], Any]:
    if not config.final_fraction:
        raise UserError("optim.schedule=exponential needs an optim.final_fraction above 0, which it falls to")
    return lambda share: config.final_fraction ** (jnp.maximum(0, share - config.hold) / (1 - config.hold))


def _bent(config: OptimConfig) -> Callable[[Any], Any]:
    if not config.hold:
        raise UserError("optim.schedule=bent needs an optim.hold above 0, where its lines meet")
    line = 1 + (config.final_fraction - 1) * config.hold
    return lambda share: jnp.interp(
        share, jnp.array([0, config.hold, 1]), jnp.array([1, (1 + line) / 2, config.final_fraction])
    )


# VAR's schedules: (share of the steps after the warm-up) -> fraction of the highest rate.
_OF_SHARE = {"linear": _linear, "exponential": _exponential, "bent": _bent}


def learning_rate(config: OptimConfig, steps: int) -> Callable[[Any], Any]:
    """step -> learning rate (float32 scalar), for a run of `steps` steps."""
    peak = config.learning_rate
    after: Callable[[Any], Any] = optax.constant_schedule(peak)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(1, steps - config.warmup_steps), config.final_fraction)
    if config.schedule == "drop":
        drop_step = round(config.drop_at * steps) - config.warmup_steps
        after = optax.piecewise_constant_schedule(peak, {drop_step: config.final_fraction})
    if config.schedule in _OF_SHARE:
        of_share = _OF_SHARE[config.schedule](config)
        last = max(1, steps - 1 - config.warmup_steps)

        def falling(step: Any) -> Any:
            return peak * of_share(jnp.clip(step / last, 0.0, 1.0))

        after = falling

    if config.warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(peak / config.warmup_steps, peak, config.warmup_steps - 1)
    if config.warmup_start:
        warmup = optax.linear_schedule(config.warmup_start * peak, peak, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def weight_decay(config: OptimConfig, steps: int) -> Callable[[Any], Any]:
    """step -> decay (float32 scalar), for a run of `steps` steps."""
    first, last = config.weight_decay, config.final_weight_decay
    if last < 0:
        return optax.constant_schedule(first)
    if first == 0:
        raise UserError("optim.final_weight_decay needs a weight_decay above 0 to begin with")
    return optax.cosine_decay_schedule(first, max(1, steps - 1), last / first)


def joining_rate(config: OptimConfig, steps: int, start: int) -> Callable[[Any], Any]:
    """Own step -> learning rate of an optimiser that joins a run at step `start`: the run's, after its own warm-up."""
    of_run = learning_rate(config, steps)
    return lambda own: of_run(own + start) * jnp.minimum(1.0, (own + 1) / max(1, config.warmup_steps))


def decayed(params: PyTree, no_decay: Callable[[str], bool]) -> PyTree:
    """Which parameters are decayed: a tree of bool like `params`; arguments as in `make_optimiser`."""

    return jax.tree_util.tree_map_with_path(
        lambda path, parameter: parameter.ndim > 1 and not no_decay(parameter_name(path)), params
    )


def make_optimiser(
    config: OptimConfig, steps: int, no_decay: Callable[[str], bool] = lambda name: False, start: int = 0
) -> optax.GradientTransformationExtraArgs:
    """AdamW after clipping the gradients by their global norm; its `update` knows steps that are skipped.

    `update(grads, state, params, finite=...)`: where the scalar is false, all updates are zero and the state stays as
    it was, bit for bit. It is done by the scalars of the arithmetic and not by a choice between two states: that has
    two readers of every new moment, for which XLA:CPU writes one array more (8% of a step of the 125M model).

    Args:
      steps: length of the whole run, where a cosine ends; with `config.accumulate` a step that is skipped is not
        counted among those of an update.
      no_decay: told a parameter's name ("a/b/kernel"), says whether it is exempt from decay.
        1-D parameters always are.
      start: the run's step at which these parameters begin to be trained.
    """
    of_step = joining_rate(config, steps, start) if start else learning_rate(config, steps)

    def rate(updates: Any) -> Any:
        return of_step(updates * config.accumulate)

    decay_of = weight_decay(config, steps)

    def adamw(b1: Any, b2: Any, decay: Any = 0.0) -> optax.GradientTransformation:
        return optax.adamw(
            rate,
            b1,
            b2,
            weight_decay=decay,
            mask=None if config.decay_all else lambda params: decayed(params, no_decay),
            mu_dtype=config.first_moment_dtype,
        )

    def update(updates: PyTree, state: Any, params: PyTree = None, *, finite: Any = True, **_: Any) -> Any:
        grads = _clipped(updates, config.clip, finite)
        # Of a moment that decays by 1 and gets 0 of the gradient the same is left.
        betas = [jnp.where(finite, beta, 1.0) for beta in (config.b1, config.b2)]
        decay = decay_of((state[0].count + start) * config.accumulate)
        updates, new = adamw(*betas, decay=decay).update(grads, state, params)
        updates = jax.tree.map(lambda u: jnp.where(finite, u, 0), updates)
        return updates, jax.tree.map(lambda x, old: x if x.ndim else jnp.where(finite, x, old), new, state)

    every_step = optax.GradientTransformationExtraArgs(adamw(config.b1, config.b2).init, update)
    return every_step if config.accumulate == 1 else _accumulated(every_step, config.accumulate)


class Accumulated(NamedTuple):
    """The state of an optimiser that updates the parameters once in several steps.

    Attributes:
      steps: int32 scalar, how many steps since the last update have given their gradients.
      updates: int32 scalar, how many updates there were.
      grads: the sum of those steps' gradients, each divided by the steps of an update.
      inner: state of what makes the updates.
    """

    steps: Any
    updates: Any
    grads: PyTree
    inner: Any


def _accumulated(
    inner: optax.GradientTransformationExtraArgs, each: int
) -> optax.GradientTransformationExtraArgs:
    """Updates by the mean gradient of `each` steps, at the last of them; skipped steps are not among them.

    As optax's `MultiSteps`, by the scalars of the arithmetic instead of a choice between two states; see
    `make_optimiser`.
    """

    def init(params: PyTree) -> Accumulated:
        zero = jnp.zeros((), jnp.int32)
        return Accumulated(zero, zero, jax.tree.map(jnp.zeros_like, params), inner.init(params))

    def update(updates: PyTree, state: Any, params: PyTree = None, *, finite: Any = True, **_: Any) -> Any:
        total = jax.tree.map(lambda s, g: s + jnp.where(finite, g / each, 0), state.grads, updates)
        due = jnp.logical_and(finite, state.steps == each - 1)
        updates, of_inner = inner.update(total, state.inner, params, finite=due)
        steps = (state.steps + jnp.where(finite, 1, 0)) % each
        left = jax.tree.map(lambda s: jnp.where(due, 0, s), total)
        return updates, Accumulated(steps, state.updates + jnp.where(due, 1, 0), left, of_inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _clipped(grads: PyTree, largest: float, finite: Any) -> PyTree:
    """Scales gradients whose global norm is above `largest` down to it; those of a skipped step become zero.

    As optax's `clip_by_global_norm`, but by one factor that melts into what follows: theirs chooses element by element
    between two arrays, for which XLA:CPU writes a copy of all gradients and reads both twice.
    """
    factor = jnp.minimum(1.0, largest / optax.tree.norm(grads))
    return jax.tree.map(lambda g: jnp.where(finite, g * factor, 0), grads)
