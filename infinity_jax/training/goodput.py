"""Where the time of a run went, and how much of the devices it used: the timing of the lines of metrics.jsonl.

All is the host's time of process 0. The host queues work for the devices and seldom waits for them, so what it does
while a step runs costs nothing: a wait for data counts only where the devices have finished all work when it ends, and
then whole, which bounds what is lost from above.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from infinity_jax.runtime.chips import chip_of
from infinity_jax.training.flops import StepCost

# What is counted, and the key of its share. The first three belong to training and are shares of the time since the
# line before; the others do not, and are shares of the time since the run began.
WAITING: Mapping[str, str] = {
    "data": "data_wait_share",
    "text": "text_wait_share",
    "pictures": "picture_wait_share",
}
BETWEEN: Mapping[str, str] = {
    "start": "start_share",
    "compile": "compile_share",
    "hooks": "hooks_share",
    "checkpoints": "checkpoint_share",
}


class Account:
    """Adds up what a run spends its time on, from the moment when it is made."""

    def __init__(self):
        self._begun = time.perf_counter()
        self._total = dict.fromkeys((*WAITING, *BETWEEN), 0.0)
        self._costs: list[StepCost] = []
        self._compiled: set[tuple] = set()
        self._last: Any = None
        self.count_from_here()

    def count_from_here(self) -> None:
        """Starts the clock of the line that is written next: time before it was no training."""
        self._started, self._before = time.perf_counter(), dict(self._total)
        self._costs.clear()

    @contextlib.contextmanager
    def spent(self, source: str) -> Iterator[None]:
        """Counts the time spent within for `source`, a key of `WAITING` or `BETWEEN`, unless a step hid the wait."""
        asked = time.perf_counter()
        try:
            yield
        finally:
            if source in BETWEEN or self._last is None or self._last.is_ready():
                self._total[source] += time.perf_counter() - asked

    def queueing(self, batch: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
        """Counts the call within of a step: the first with a new shape waits for the compiler, others for nothing."""
        shapes = tuple((name, x.shape) for name, x in batch.items())
        if shapes in self._compiled:
            return contextlib.nullcontext()
        self._compiled.add(shapes)
        return self.spent("compile")

    def queued(self, metrics: Mapping[str, Any]) -> None:
        """Notes what a step that was queued will give: while that is not there, the devices have work."""
        self._last = next((value for value in metrics.values() if hasattr(value, "is_ready")), None)

    def took(self, cost: StepCost | None) -> None:
        """Counts the work of a step that was queued; None where nobody knows it."""
        if cost is not None:
            self._costs.append(cost)

    def seconds(self) -> float:
        """Returns the seconds since the line before."""
        return time.perf_counter() - self._started

    def line(self, steps: int, examples: int) -> dict[str, float]:
        """Tells the timing of the line of a step and begins the next: keys of `run_log.TIMING_KEYS`.

        Args:
          steps: taken since the line before.
          examples: of these steps.
        """
        now = time.perf_counter()
        passed, whole = now - self._started, now - self._begun
        values = {"seconds_per_step": passed / steps, "images_per_second": examples / passed}
        if len(self._costs) >= steps:  # the last ones may be of steps after this line
            values |= rates(self._costs[:steps], passed)
        lost = {key: self._total[name] for name, key in {**WAITING, **BETWEEN}.items()}
        values["goodput"] = max(0.0, 1 - sum(lost.values()) / whole)
        for name, key in WAITING.items():
            values[key] = (self._total[name] - self._before[name]) / passed
        values |= {key: self._total[name] / whole for name, key in BETWEEN.items()}
        later = self._costs[steps:]
        self.count_from_here()
        self._costs.extend(later)
        return values


def rates(costs: list[StepCost], seconds: float, devices: list[Any] | None = None) -> dict[str, float]:
    """Computes rates of steps that took `seconds` together, all devices together; `mfu` and `hfu` of a known chip only.

    Args:
      devices: that took them; default all.
    """
    devices = jax.devices() if devices is None else devices
    model = sum(cost.model_flops for cost in costs) / seconds
    hardware = sum(cost.hardware_flops for cost in costs) / seconds
    values = {
        "tokens_per_second": sum(cost.tokens for cost in costs) / seconds,
        "model_flops_per_second": model,
        "hardware_flops_per_second": hardware,
    }
    if (chip := chip_of(devices[0])) is not None:
        peak = chip.peak_flops * len(devices)
        values |= {"mfu": model / peak, "hfu": hardware / peak}
    return values
