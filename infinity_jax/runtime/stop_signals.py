"""SIGINT and SIGTERM as a wish to stop soon, so that work can be brought to a good end."""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

# jax lets all processes stop at the same count. A run's steps would not do: the next run's begin again.
_asked = itertools.count(1)


@contextlib.contextmanager
def received() -> Iterator[Callable[[], int | None]]:
    """Yields a function to be asked after every step: None, or the signal for which to stop after this step.

    A second signal acts as it always does. Of several processes any may get the signal, and all are told to stop after
    the same step, a second or so later: they agree on it through jax, which holds SIGTERM's handler there. So each must
    ask equally often.
    """
    numbers: list[int] = []
    several = jax.process_count() > 1

    def asked() -> int | None:
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
        numbers.append(number)
        restore()
        if several:
            os.kill(os.getpid(), signal.SIGTERM)  # tells jax

    handled = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, remember) for number in handled}
    try:
        yield asked
    finally:
        restore()
