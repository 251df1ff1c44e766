"""What a training run carries from step to step, how one gradient changes it, and the step that does so."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key, PyTree

from infinity_jax.runtime.sharding import Layout


@flax.struct.dataclass
class TrainState:
    """Everything that a step reads and writes.

    Attributes:
      step: int32 scalar, the number of steps taken.
      params: the model's parameters, float32.
      opt_state: the optimiser's state.
      ema_params: the moving average of the parameters, same tree; None for a run without one.
      adversary: the discriminator's own TrainState in a tokenizer's adversarial training, else None.
    """

    # Any: jax also builds this tree with shapes, names or flags as its leaves.
    step: Any
    params: PyTree
    opt_state: Any
    ema_params: PyTree
    adversary: Any = None


def create(params: PyTree, optimiser: optax.GradientTransformation, ema: bool) -> TrainState:
    """Makes the state before the first step; the average starts as a copy of the parameters."""
    # A real copy: the step donates its state, and one buffer cannot be donated twice.
    ema_params = jax.tree.map(lambda p: jnp.array(p, copy=True), params) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimiser.init(params), ema_params)


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
    return make, TrainState(layout.replicated, params, opt_state, params if ema else None)


def apply_gradients(
    state: TrainState, grads: PyTree, optimiser: optax.GradientTransformation, ema_decay: float
) -> TrainState:
    """Takes one step of the optimiser and one of the moving average.

    Args:
      grads: gradients, same tree and shapes as `state.params`.
      ema_decay: the average's decay; early on min(ema_decay, (1 + step) / (10 + step)) is used,
        so that the random start is soon forgotten.
    """
    updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_params is not None:
        step = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1 + step) / (10 + step))
        ema_params = jax.tree.map(lambda mean, p: mean + (1 - decay) * (p - mean), ema_params, params)
    changes = {"step": state.step + 1, "params": params, "opt_state": opt_state, "ema_params": ema_params}
    return state.replace(**changes)  # pyright: ignore[reportAttributeAccessIssue]


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
    """

    function: StepFunction
    new_state: Callable[[], TrainState]
    shardings: TrainState
    layout: Layout

    def jitted(self) -> jax.stages.Wrapped:
        """Jits the step. The new state takes the memory and the place of the old, metrics are replicated."""
        return jax.jit(
            self.layout.traced(self.function),
            donate_argnums=0,
            out_shardings=(self.shardings, self.layout.replicated),
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
