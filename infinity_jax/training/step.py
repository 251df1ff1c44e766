"""A train step with the state that it changes, laid out over devices.

Both trainers build one for the loop; `infinity-jax compile` lowers the transformer's ahead of time.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Key

from infinity_jax.runtime.sharding import Layout
from infinity_jax.training.state import TrainState

StepFunction = Callable[[TrainState, Any, Key[Array, ""]], tuple[TrainState, Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """A step, not yet compiled, and how its state begins.

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
