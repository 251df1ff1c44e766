"""A trace of some steps for xprof (`train.profile`)."""

import re
from pathlib import Path
from typing import Any

import jax
from absl import logging

from infinity_jax.errors import UserError

FOLDER = "profile"


def steps_of(text: str) -> tuple[int, int] | None:
    """Reads "START:STOP", the first and the last step that are traced; None for "".

    Raises:
      UserError: it is not of that form.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(
            f"train.profile is {text!r}; write START:STOP with the first and the last step, like 20:24"
        )
    return int(match[1]), int(match[2])


class Profile:
    """Traces the steps of `train.profile` into a workdir; each process its own devices."""

    def __init__(self, text: str = "", workdir: Path = Path()):
        self._steps, self._folder, self._runs = steps_of(text), workdir / FOLDER, False

    def before(self, step: int) -> None:
        """Begins the trace if this is its first step, or a later one that the run begins with."""
        if self._steps is not None and not self._runs and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(self._folder)
            self._runs = True

    def after(self, step: int, metrics: Any) -> None:
        """Ends the trace if this was its last step, once the devices have finished it."""
        if self._runs and self._steps is not None and step >= self._steps[1]:
            jax.block_until_ready(metrics)
            self.close()
            logging.info("wrote a trace of the steps up to %d into %s; xprof shows it", step, self._folder)

    def close(self) -> None:
        """Ends a trace that is under way, as when the run stops within."""
        if self._runs:
            jax.profiler.stop_trace()
            self._runs = False
