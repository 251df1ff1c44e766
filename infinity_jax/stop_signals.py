"""SIGINT and SIGTERM as a wish to stop soon, so that work can be brought to a good end."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def received() -> Iterator[list[int]]:
    """A list that gets the first SIGINT or SIGTERM; a second one acts as it always does."""
    numbers: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield numbers  # only the main thread may set handlers
        return

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def remember(number: int, frame: Any) -> None:
        numbers.append(number)
        restore()

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield numbers
    finally:
        restore()
