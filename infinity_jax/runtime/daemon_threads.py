"""Work in threads that nobody waits for at the end: the main thread stays free for signals and deadlines."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(function: Callable[[T], R], items: Sequence[T], at_once: int) -> list[R]:
    """Calls `function` with each item in up to `at_once` threads; the results, in the order of the items.

    Raises:
      whatever the first call to fail raises, without waiting for the others; no further call begins.
    """
    waiting: Iterator[tuple[int, T]] = iter(enumerate(items))
    lock, done = threading.Lock(), queue.SimpleQueue()
    stopped = threading.Event()

    def work() -> None:
        while not stopped.is_set():
            with lock:
                task = next(waiting, None)
            if task is None:
                return
            try:
                done.put((task[0], function(task[1]), None))
            except BaseException as error:
                done.put((task[0], None, error))

    for _ in range(min(at_once, len(items))):
        threading.Thread(target=work, daemon=True).start()
    results: dict[int, Any] = {}
    try:
        while len(results) < len(items):
            number, result, error = done.get()
            if error is not None:
                raise error
            results[number] = result
    finally:
        stopped.set()
    return [results[number] for number in range(len(items))]


def within(seconds: float, function: Callable[[], R]) -> R:
    """Calls `function` in a thread of its own; TimeoutError if it takes longer, and it is left to itself."""
    result: queue.SimpleQueue = queue.SimpleQueue()

    def work() -> None:
        try:
            result.put((function(), None))
        except BaseException as error:
            result.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    try:
        value, error = result.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no whole answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return value
