"""Numbers that are not finite: skipped steps are counted until there are too many, all else ends the run at once."""

import collections
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.checkpoints.run import Checkpointer
from infinity_jax.errors import UserError
from infinity_jax.training.state import SKIPPED_IN_A_ROW, TrainState

# So many steps late the host looks at a step's count, so that it never waits for the device while work is queued.
_LATE = 4
_REMEDY = "Try a lower optim.learning_rate, a longer optim.warmup_steps, a lower optim.clip, or compute_dtype float32"


class SkipWatch:
    """Ends a run in which `most` steps in a row were skipped; every step is looked at, a few steps late."""

    def __init__(self, most: int, checkpointer: Checkpointer):
        """`checkpointer` knows the last good checkpoint, which the error names."""
        self._most, self._checkpointer = most, checkpointer
        self._pending: collections.deque[tuple[int, Any]] = collections.deque()

    def taken(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Notes the metrics of a step that was queued, and looks at those of an earlier one."""
        if SKIPPED_IN_A_ROW in metrics:
            self._pending.append((step, metrics[SKIPPED_IN_A_ROW]))
        self._look(_LATE)

    def check(self) -> None:
        """Waits for all steps noted so far. Raises UserError if too many in a row were skipped."""
        self._look(0)

    def _look(self, left: int) -> None:
        while len(self._pending) > left:
            step, count = self._pending.popleft()
            in_a_row = int(jax.device_get(count))
            if in_a_row >= self._most:
                raise UserError(
                    f"the gradients of {in_a_row} steps in a row, up to step {step}, were not finite; such steps are "
                    f"skipped, and train.most_skipped {self._most} in a row end the run; "
                    f"{_kept(self._checkpointer)}. {_REMEDY}"
                )


def check_metrics(step: int, metrics: Mapping[str, Any], checkpointer: Checkpointer) -> None:
    """Raises UserError if a number of a step that was not skipped is not finite; arrays are not looked at."""
    if int(metrics.get(SKIPPED_IN_A_ROW, 0)):
        return
    for name in sorted(metrics, key=lambda name: name != "loss"):
        if np.ndim(metrics[name]) == 0 and not np.isfinite(metrics[name]):
            raise UserError(
                f"{name} is {float(metrics[name])} at step {step}; {_kept(checkpointer)}. {_REMEDY}"
            )


def check_state(step: int, state: TrainState, checkpointer: Checkpointer) -> None:
    """Raises UserError if a number of a state that is to be saved is not finite."""
    if not _all_finite([x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]):
        raise UserError(
            f"parameters or the optimiser's numbers are not finite at step {step}, which is not saved; "
            f"{_kept(checkpointer)}. {_REMEDY}"
        )


@jax.jit
def _all_finite(arrays: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in arrays]).all()


def _kept(checkpointer: Checkpointer) -> str:
    saved = checkpointer.latest_step()
    if not saved:
        return "no checkpoint was saved before"
    return f"the checkpoint of step {saved} is kept, in {checkpointer.directory / str(saved)}"
