"""SIGINT, SIGTERM and a time limit as a wish to stop soon, so that work can be brought to a good end."""

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

# jax lets all processes stop at the same count. A run's steps would not do: the next run's begin again.
_asked = itertools.count(1)


@contextlib.contextmanager
def received(minutes: float = 0.0) -> Iterator[Callable[[], int | None]]:
    """Yields a function to be asked after every step: None, or the signal for which to stop after this step.

    After `minutes`, unless that is 0, it answers SIGALRM, or SIGTERM where there are several processes. A second signal
    acts as it always does. Of several processes any may get the signal, and all are told to stop after the same step, a
    second or so later: they agree on it through jax, which holds SIGTERM's handler there. So each must ask equally
    often.
    """
    numbers: list[int] = []
    end = time.monotonic() + 60 * minutes if minutes else float("inf")
    several = jax.process_count() > 1

    def wish(number: int) -> None:
        numbers.append(number)
        if several:
            os.kill(os.getpid(), signal.SIGTERM)  # tells jax

    def asked() -> int | None:
        if not numbers and time.monotonic() > end:
            wish(signal.SIGTERM if several else signal.SIGALRM)
        first = numbers[0] if numbers else None
        if several:
            stop = multihost_utils.reached_preemption_sync_point(next(_asked))
            return (first or signal.SIGTERM) if stop else None
        return first

    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may set handlers
        return

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def remember(number: int, frame: Any) -> None:
        restore()
        wish(number)

    handled = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, remember) for number in handled}
    try:
        yield asked
    finally:
        restore()
