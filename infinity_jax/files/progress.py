"""How far long work has come, on stderr: a bar on a terminal, else a plain line now and then. Commands print no other.

Of several processes only the first one speaks.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from absl import logging
from tqdm import tqdm

T = TypeVar("T")
# Between lines where stderr is no terminal; shorter work has none.
SECONDS_BETWEEN_LINES = 10.0
# Work of an unknown length that is done sooner is not worth a line.
_SECONDS_UNSAID = 3.0


_silent = False


def be_silent() -> None:
    """Makes this process say nothing of its progress: it is not the first one of a run."""
    global _silent
    _silent = True


def speaks() -> bool:
    """Tells whether this process is the one that speaks."""
    return not _silent


class Progress:
    """Counts what is done of a known total.

    With `advance` alone a line says the count and the time left. Whoever has numbers of its own, like training, gives
    them to `show`, and then lines come from there.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0):
        """`what` is being done, of `total` things called `unit`, of which `done` were done before."""
        self.done, self._what, self._total, self._unit = done, what, total, unit
        self._start = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._said: float | None = None
        self._speaks = speaks()
        bar = self._speaks and sys.stderr.isatty()
        self._bar = tqdm(
            desc=what, total=total, initial=done, unit=unit, disable=not bar, dynamic_ncols=True, leave=True
        )

    def advance(self, count: int = 1, line: bool = True) -> None:
        """Notes that so many more are done; `line`: it may be said by a line."""
        if not count:
            return
        self.done += count
        self._bar.update(count)
        now = time.monotonic()
        left = self._left(now)
        since = now - (self._start if self._said is None else self._said)
        # The last line only where there were others.
        due = since >= SECONDS_BETWEEN_LINES or (self.done >= self._total and self._said is not None)
        if line and due and self._speaks and self._bar.disable:
            self._said = now
            end = "" if left is None else f", {in_words(left)} left"
            end = f", in {in_words(now - self._start)}" if self.done >= self._total else end
            logging.info("%s: %d of %d %s%s", self._what, self.done, self._total, self._unit, end)

    def _left(self, now: float) -> float | None:
        """Estimates the seconds that are left by the speed after the first part, which waits for the compiler."""
        if self._first is None:
            self._first = (now, self.done)
            return None
        since, before = self._first
        return (now - since) / (self.done - before) * (self._total - self.done)

    def show(self, done: int, numbers: Mapping[str, Any], seconds_each: float, steady: bool = True) -> None:
        """Says the scalars among some numbers, those of the last one done, and what time is left by `seconds_each`.

        `steady`: it tells of the others too; the first ones of a run wait for the compiler.
        """
        named = {k: f"{float(v):.4g}" for k, v in numbers.items() if getattr(v, "ndim", 0) == 0}
        self._bar.set_postfix(named, refresh=False)
        now = time.monotonic()
        due = self._said is None or now - self._said >= SECONDS_BETWEEN_LINES or done == self._total
        if self._speaks and self._bar.disable and due:
            self._said = now
            words = " ".join(f"{k} {v}" for k, v in named.items())
            left = (self._total - done) * seconds_each
            end = f", {in_words(left)} left" if left and steady else ""
            logging.info(
                "%s %d/%d: %s (%.3g s a %s%s)",
                self._unit,
                done,
                self._total,
                words,
                seconds_each,
                self._unit,
                end,
            )

    def close(self) -> None:
        """Ends the bar's line."""
        self._bar.close()


def counted(
    items: Iterable[T], what: str, total: int, unit: str, count: Callable[[T], int] = lambda _: 1
) -> Iterator[T]:
    """Hands out items and shows the progress; `count` says how many of the total an item is."""
    with contextlib.closing(Progress(what, total, unit)) as progress:
        for item in items:
            yield item
            progress.advance(count(item))


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Says what is waited for within, if that takes longer than a few seconds: a compiler says nothing itself."""
    timer = threading.Timer(_SECONDS_UNSAID, lambda: logging.info("%s", what))
    timer.daemon = True
    if speaks():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def in_words(seconds: float) -> str:
    """Writes a time in two digits or so: "40 s", "12 min", "3.5 h"."""
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.3g} h"
