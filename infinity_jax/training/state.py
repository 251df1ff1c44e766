"""What a training run carries from step to step, how one gradient changes it, and the step that does so."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Key, PyTree

from infinity_jax.checkpoints.state_tree import ZERO_WHERE_ABSENT
from infinity_jax.runtime.sharding import Layout
from infinity_jax.training.optim import Accumulated

# Names of metrics.
SKIPPED, SKIPPED_IN_A_ROW = "skipped_steps", "skipped_in_a_row"


@flax.struct.dataclass
class TrainState:
    """Everything that a step reads and writes.

    Attributes:
      step: int32 scalar, the number of steps taken.
      params: the model's parameters, float32.
      opt_state: the optimiser's state.
      ema_params: the moving average of the parameters, same tree; None for a run without one.
      adversary: the discriminator's own TrainState in a tokenizer's adversarial training, else None.
      skipped: which steps changed nothing, see `Skipped`; None in the state of an adversary. A checkpoint from before
        there was such a count has none, and is read as if it were 0.
    """

    # Any: jax also builds this tree with shapes, names or flags as its leaves.
    step: Any
    params: PyTree
    opt_state: Any
    ema_params: PyTree
    adversary: Any = None
    skipped: Any = flax.struct.field(default=None, metadata={ZERO_WHERE_ABSENT: True})


@flax.struct.dataclass
class Skipped:
    """Counts the steps that were skipped because a gradient was not finite, int32 scalars.

    Attributes:
      steps: all so far.
      in_a_row: those after the last step that was not.
    """

    steps: Any
    in_a_row: Any


def create(params: PyTree, optimiser: optax.GradientTransformation, ema: bool) -> TrainState:
    """Makes the state before the first step; the average starts as a copy of the parameters."""
    # A real copy: the step donates its state, and one buffer cannot be donated twice.
    ema_params = jax.tree.map(lambda p: jnp.array(p, copy=True), params) if ema else None
    zero = functools.partial(jnp.zeros, (), jnp.int32)
    return TrainState(zero(), params, optimiser.init(params), ema_params, skipped=Skipped(zero(), zero()))


def new_state(
    variables: Callable[[], PyTree], optimiser: optax.GradientTransformation, ema: bool, layout: Layout
) -> tuple[Callable[[], TrainState], TrainState]:
    """Plans a fresh state and where each of its arrays lies: average and moments follow their parameters.

    Args:
      variables: makes fresh parameters, boxed with their logical axis names.
    Returns:
      a function to be jitted with the second value as its `out_shardings`, so that no device ever holds the whole;
      the state's tree with a NamedSharding for each array.
    """

    def make() -> TrainState:
        return create(nn.meta.unbox(variables()), optimiser, ema)

    params = layout.of(jax.eval_shape(variables))
    shapes = jax.eval_shape(make)
    opt_state = optax.tree_map_params(
        optimiser,
        lambda _, sharding: sharding,
        shapes.opt_state,
        params,
        transform_non_params=lambda _: layout.replicated,
    )
    skipped = Skipped(layout.replicated, layout.replicated)
    return make, TrainState(layout.replicated, params, opt_state, params if ema else None, skipped=skipped)


def apply_gradients(
    state: TrainState,
    grads: PyTree,
    optimiser: optax.GradientTransformation,
    ema_decay: float,
    finite: Bool[Array, ""] | None = None,
) -> TrainState:
    """Takes one step of the optimiser and one of the moving average, or skips it where gradients are not finite.

    A skipped step leaves parameters, optimiser and average as they were. It counts as a step, so that the next one
    draws other random numbers, and in `state.skipped`.

    Args:
      grads: gradients, same tree and shapes as `state.params`.
      optimiser: of `make_optimiser`; its `update` is told `finite`.
      ema_decay: the average's decay an update; early on min(ema_decay, (1 + n) / (10 + n)) of update n is used,
        so that the random start is soon forgotten.
      finite: whether the step is taken; None takes it if the gradients' norm is finite.
    """
    if finite is None:
        finite = jnp.isfinite(optax.tree.norm(grads))
    update = optax.with_extra_args_support(optimiser).update
    updates, opt_state = update(grads, state.opt_state, state.params, finite=finite)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_params is not None:
        before, after = _updates(state.opt_state, state.step), _updates(opt_state, state.step + 1)
        decay = jnp.minimum(ema_decay, (1.0 + before) / (10.0 + before))
        updated = finite & (after > before)
        ema_params = jax.tree.map(
            lambda mean, p: jnp.where(updated, mean + (1 - decay) * (p - mean), mean), ema_params, params
        )
    changes = {"params": params, "opt_state": opt_state, "ema_params": ema_params}
    changes |= {"step": state.step + 1, "skipped": _counted(state.skipped, finite)}
    return state.replace(**changes)  # pyright: ignore[reportAttributeAccessIssue]


def _updates(opt_state: Any, step: Any) -> Any:
    """Counts the updates of the parameters: one a step, unless the optimiser gathers the gradients of several."""
    return opt_state.updates if isinstance(opt_state, Accumulated) else step


def _counted(skipped: Skipped | None, finite: Bool[Array, ""]) -> Skipped | None:
    if skipped is None:
        return None
    return Skipped(skipped.steps + ~finite, jnp.where(finite, 0, skipped.in_a_row + 1))


def skip_metrics(state: TrainState) -> dict[str, Array]:
    """Tells a state's count of skipped steps as metrics, int32 scalars; nothing of a state without one."""
    skipped = state.skipped
    return {} if skipped is None else {SKIPPED: skipped.steps, SKIPPED_IN_A_ROW: skipped.in_a_row}


def averaged(state: TrainState) -> PyTree:
    """Picks the parameters to judge a model by: the moving average, or the parameters of a run without one."""
    return state.params if state.ema_params is None else state.ema_params


StepFunction = Callable[[TrainState, Any, Key[Array, ""]], tuple[TrainState, Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """A step, not yet compiled, and how its state begins; the loop runs it, `infinity-jax compile` lowers it.

    Attributes:
      function: (state, batch, seed key) -> (state, metrics with "loss"), a pure function. Random numbers come from
        `infinity_jax.runtime.seeds.stream(seed key, name, state.step)`.
      new_state: makes a fresh state, of which a restored one has the shapes. See `state.new_state`.
      shardings: the state's tree with a NamedSharding for each array.
      layout: where batches and activations go.
      compiler_options: what XLA is asked for.
    """

    function: StepFunction
    new_state: Callable[[], TrainState]
    shardings: TrainState
    layout: Layout
    compiler_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def jitted(self) -> jax.stages.Wrapped:
        """Jits the step, with `skip_metrics` among its metrics.

        The new state takes the memory and the place of the old, metrics are replicated.
        """

        def function(state, batch, key):
            state, metrics = self.function(state, batch, key)
            return state, {**metrics, **skip_metrics(state)}

        return jax.jit(
            self.layout.traced(function),
            donate_argnums=0,
            out_shardings=(self.shardings, self.layout.replicated),
            compiler_options=dict(self.compiler_options),
        )

    def fresh_state(self) -> TrainState:
        """Makes a fresh state where it belongs, so that no device ever holds the whole."""
        return jax.jit(self.new_state, out_shardings=self.shardings)()

    def state_shapes(self) -> TrainState:
        """Tells the state's shapes, dtypes and shardings as ShapeDtypeStructs; no array is made."""
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            jax.eval_shape(self.new_state),
            self.shardings,
        )

    def key_shape(self) -> jax.ShapeDtypeStruct:
        """Tells the shape, dtype and sharding of the seed key."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=self.layout.replicated)
