"""SIGINT and SIGTERM end a command within seconds, whatever it is doing; a run of training saves first.

An exception in the main thread, which lets go of what is half done, is the first way. It may be lost: one that is
raised in a callback of the garbage collector is swallowed, and none is raised while the compiler runs. So a thread,
which the system tells of each signal, ends the process where it has not ended by itself after `GRACE_SECONDS`.
"""

import contextlib
import itertools
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from infinity_jax.files import atomic

GRACE_SECONDS = 5.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Written by our handler: this signal is not one that a run takes for itself; and: its exception was lost.
_ENDS, _LOST = 0, 255
# jax lets all processes stop at the same count. A run's steps would not do: the next run's begin again.
_asked = itertools.count(1)


class Terminated(SystemExit):
    """SIGTERM, as KeyboardInterrupt is SIGINT."""


class _State:
    """What handlers and the thread know of each other.

    Attributes:
      pipe: where signals are written for the thread; None before `install`.
      spare: how many signals a run still takes for itself.
      ending: the signal for which the process ends.
    """

    pipe: int | None = None
    spare: int = 0
    ending: int | None = None


def install() -> None:
    """Begins to end this process for SIGINT and SIGTERM; a signal that the caller had ignored stays so.

    Does nothing outside the main thread, which alone may set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if _State.pipe is None:
        reading, _State.pipe = os.pipe()
        os.set_blocking(_State.pipe, False)
        os.register_at_fork(after_in_child=end_at_once)
        sys.unraisablehook = _lost
        threading.Thread(target=_watch, args=(reading,), name="stop signals", daemon=True).start()
    signal.set_wakeup_fd(_State.pipe, warn_on_full_buffer=False)
    _handle(_end)


def end_at_once() -> None:
    """Gives both signals back to the system, which ends the process without a word: nothing is being written."""
    signal.set_wakeup_fd(-1)
    _handle(signal.SIG_DFL)


def ending() -> int | None:
    """Returns the signal for which this process ends, if there is one."""
    return _State.ending


def leave(code: int) -> NoReturn:
    """Ends the process now, without waiting for threads: those of jax crash an interpreter that ends under them."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    for child in multiprocessing.active_children():
        child.terminate()
    os._exit(code)


def _handle(handler: Any) -> None:
    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _end(number: int, frame: Any) -> NoReturn:
    """Handles a signal in the main thread."""
    _State.ending = number
    if _State.pipe is not None:
        with contextlib.suppress(OSError):  # a full pipe has been read of
            os.write(_State.pipe, bytes([_ENDS]))
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(128 + number)


def _lost(unraisable: Any) -> None:
    """Takes the place of `sys.unraisablehook`: has the signal sent again whose exception a callback has swallowed."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt | Terminated) and _State.pipe is not None:
        with contextlib.suppress(OSError):
            os.write(_State.pipe, bytes([_LOST]))
        return
    sys.__unraisablehook__(unraisable)


def _watch(reading: int) -> None:
    """Runs in a thread: waits for signals, and ends the process that does not end by itself."""
    number, deadline = int(signal.SIGTERM), None
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([reading], [], [], left)[0]:
            break
        for byte in os.read(reading, 64):
            if byte in _SIGNALS:
                number = byte
                if _State.spare:
                    _State.spare -= 1
                    continue
            elif byte == _LOST:
                time.sleep(0.02)  # until the callback is over
                os.kill(os.getpid(), _State.ending or number)
            elif byte != _ENDS:
                continue
            deadline = deadline or time.monotonic() + GRACE_SECONDS
    _State.ending = _State.ending or number
    with contextlib.suppress(OSError):  # not through sys.stderr, which another thread may hold
        os.write(2, f"infinity-jax: error: interrupted by {signal.Signals(number).name}\n".encode())
    atomic.remove_own_unfinished()
    leave(128 + _State.ending)


@contextlib.contextmanager
def received(minutes: float = 0.0) -> Iterator[Callable[[], int | None]]:
    """Yields a function to be asked after every step: None, or the signal for which to stop after this step.

    After `minutes`, unless that is 0, it answers SIGALRM, or SIGTERM where there are several processes. Until it is
    asked first there is nothing to save, and a signal ends the process as it does elsewhere; a second signal does so
    too. Of several processes any may get the signal, and all are told to stop after the same step, a second or so
    later: they agree on it through jax, which holds SIGTERM's handler there. So each must ask equally often.
    """
    import jax

    numbers: list[int] = []
    before: dict[int, Any] = {}
    end = time.monotonic() + 60 * minutes if minutes else float("inf")
    several = jax.process_count() > 1

    def wish(number: int) -> None:
        numbers.append(number)
        if several:
            os.kill(os.getpid(), signal.SIGTERM)  # tells jax

    def asked() -> int | None:
        if not before and not several:
            take()
        if not numbers and time.monotonic() > end:
            wish(signal.SIGTERM if several else signal.SIGALRM)
        first = numbers[0] if numbers else None
        if several:
            from jax.experimental import multihost_utils

            stop = multihost_utils.reached_preemption_sync_point(next(_asked))
            return (first or signal.SIGTERM) if stop else None
        return first

    def take() -> None:
        if threading.current_thread() is threading.main_thread():
            _State.spare = 1
            handled = (signal.SIGINT,) if several else _SIGNALS
            before.update((number, signal.signal(number, remember)) for number in handled)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def remember(number: int, frame: Any) -> None:
        restore()
        wish(number)

    if several:
        take()
    try:
        yield asked
    finally:
        _State.spare = 0
        restore()
