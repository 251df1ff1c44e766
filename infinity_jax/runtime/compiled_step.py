"""A step's programs: one for each shape of batch, compiled at its first use and told of in the log."""

import time
from typing import Any

import jax
from absl import logging
from jaxtyping import Array, Key, PyTree

from infinity_jax.files.progress import waiting
from infinity_jax.runtime.devices import GIB


class CompiledStep:
    """Calls a jitted step (state, batch, key or None), which it compiles once for every shape of batch.

    Pictures of another aspect ratio come as arrays of another shape, so each ratio is one program and one line.
    """

    def __init__(self, step: jax.stages.Wrapped):
        self._step = step
        self._programs: dict[tuple, jax.stages.Compiled] = {}

    def __call__(self, state: PyTree, batch: dict[str, Array], key: Key[Array, ""] | None) -> Any:
        """Runs the step's program for these shapes, which is compiled first if it is new."""
        shapes = tuple((name, x.shape, x.dtype) for name, x in batch.items())
        if shapes not in self._programs:
            self._programs[shapes] = self._compile(state, batch, key)
        return self._programs[shapes](state, batch, key)

    def _compile(
        self, state: PyTree, batch: dict[str, Array], key: Key[Array, ""] | None
    ) -> jax.stages.Compiled:
        started = time.perf_counter()
        with waiting("compiling the step, once for each shape of batch"):
            compiled = self._step.lower(state, batch, key).compile()
        memory: Any = compiled.memory_analysis()
        logging.info(
            "compiled the step for batches of %s in %.1f s; each device needs %.3g GiB, %.3g of them while it runs",
            ", ".join(f"{name} {'x'.join(map(str, x.shape))}" for name, x in batch.items()),
            time.perf_counter() - started,
            planned_bytes(compiled) / GIB,
            memory.temp_size_in_bytes / GIB,
        )
        return compiled


def planned_bytes(compiled: jax.stages.Compiled) -> int:
    """Counts the memory of one device that a program needs, as if all its temporary arrays lived at once.

    The compiler's own peak leaves some of them out, and a CPU's leaves out all.
    """
    memory: Any = compiled.memory_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return arguments + outputs + temporaries + memory.generated_code_size_in_bytes
