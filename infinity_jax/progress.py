"""What a person sees of a run: a progress bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from tqdm import tqdm

# Between lines when stderr is not a terminal.
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows the steps of a run on stderr; of several processes the first one shows them."""

    def __init__(self, first: int, steps: int):
        """`first` steps of `steps` are already done."""
        self._steps = steps
        self._shown: float | None = None
        self._speaks = jax.process_index() == 0
        shown = self._speaks and sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=first, unit="step", disable=not shown, dynamic_ncols=True)

    def advance(self) -> None:
        """One more step is done."""
        self._bar.update()

    def show(self, step: int, values: Mapping[str, Any], seconds_per_step: float) -> None:
        """Shows a logged step's scalars."""
        named = {k: f"{float(v):.4g}" for k, v in values.items() if getattr(v, "ndim", 0) == 0}
        self._bar.set_postfix(named, refresh=False)
        now = time.monotonic()
        due = self._shown is None or now - self._shown >= _SECONDS_BETWEEN_LINES or step == self._steps
        if self._speaks and self._bar.disable and due:
            self._shown = now
            words = " ".join(f"{k} {v}" for k, v in named.items())
            logging.info("step %d/%d: %s (%.3g s a step)", step, self._steps, words, seconds_per_step)

    def close(self) -> None:
        """Ends the bar's line."""
        self._bar.close()
