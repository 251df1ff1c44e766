"""A step's programs: one for each shape of batch, compiled before the first step, or at their first use."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import jax
from absl import logging
from jaxtyping import Array, Key, PyTree

from infinity_jax.files.progress import counted, waiting
from infinity_jax.runtime.devices import GIB, main_memory

# What the compiler may take for one program of a published size on the host (2 to 2.6 GB seen for 3B parameters).
_HOST_BYTES_EACH = 3 * GIB
BatchShapes = Mapping[str, jax.ShapeDtypeStruct]
# None: what it was compiled for is not here, so it cannot be run.
Compiler = Callable[[jax.stages.Lowered], jax.stages.Compiled | None]


class CompiledStep:
    """Calls a jitted step (state, batch, key or None), which it compiles once for every shape of batch.

    Pictures of another aspect ratio come as arrays of another shape, so each ratio is one program and one line.
    """

    def __init__(self, step: jax.stages.Wrapped, compiler: Compiler | None = None, what: str = "the step"):
        """Takes a jitted step, what compiles its programs or loads them (`KeptPrograms`), and its name in the log."""
        self._step, self._what = step, what
        self._compiler = compiler or (lambda lowered: lowered.compile())
        self._programs: dict[tuple, Any] = {}

    def __call__(self, state: PyTree, batch: dict[str, Array], key: Key[Array, ""] | None) -> Any:
        """Runs the step's program for these shapes, which is compiled first if it is new."""
        shapes = _shapes(batch)
        if shapes not in self._programs:
            with waiting(f"compiling {self._what}, once for each shape of batch"):
                self._programs[shapes] = self._compile(self._step.lower(state, batch, key), batch)
        return self._programs[shapes](state, batch, key)

    def prepare(self, state: PyTree, batches: Sequence[BatchShapes], key: Any) -> None:
        """Compiles the programs of all these batches side by side, as many at a time as the host has cores and memory.

        Args:
          state, key: as of a call; shapes with shardings will do.
          batches: of each kind of batch the shape, dtype and sharding of its arrays.
        """
        new = {_shapes(batch): batch for batch in batches if _shapes(batch) not in self._programs}
        at_once = max(1, min(len(new), os.cpu_count() or 1, main_memory() // _HOST_BYTES_EACH))
        with ThreadPoolExecutor(at_once) as pool:
            # Tracing holds Python's lock, compiling does not: so one is traced while those before it are compiled.
            jobs = {
                pool.submit(self._compile, self._step.lower(state, batch, key), batch): shapes
                for shapes, batch in new.items()
            }
            try:
                for job in counted(as_completed(jobs), f"compiling {self._what}", len(jobs), "programs"):
                    self._programs[jobs[job]] = job.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _compile(self, lowered: jax.stages.Lowered, batch: Mapping[str, Any]) -> jax.stages.Compiled | None:
        """Compiles one program and says what it needs."""
        started = time.perf_counter()
        compiled = self._compiler(lowered)
        shapes = ", ".join(f"{name} {'x'.join(map(str, x.shape))}" for name, x in batch.items())
        if compiled is None:
            logging.info("%s for batches of %s was compiled before", self._what, shapes)
            return None
        memory: Any = compiled.memory_analysis()
        logging.info(
            "compiled %s for batches of %s in %.1f s; each device needs %.3g GiB, %.3g of them while it runs",
            self._what,
            shapes,
            time.perf_counter() - started,
            planned_bytes(compiled) / GIB,
            memory.temp_size_in_bytes / GIB,
        )
        return compiled


def _shapes(batch: Mapping[str, Any]) -> tuple:
    """Tells batches apart that need different programs."""
    return tuple(sorted((name, x.shape, str(x.dtype)) for name, x in batch.items()))


def planned_bytes(compiled: jax.stages.Compiled) -> int:
    """Counts the memory of one device that a program needs, as if all its temporary arrays lived at once.

    The compiler's own peak leaves some of them out, and a CPU's leaves out all.
    """
    memory: Any = compiled.memory_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return arguments + outputs + temporaries + memory.generated_code_size_in_bytes
