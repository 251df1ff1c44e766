"""What a command's end means to the shell: one message and an exit code."""

import contextlib
import errno
import signal
import sys
import traceback
from collections.abc import Callable

from infinity_jax.errors import UserError, printable
from infinity_jax.runtime import stop_signals

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def of(command: Callable[[], int], several: bool) -> int:
    """Runs a command; what went wrong is said on stderr.

    Args:
      command: gives an exit code of its own.
      several: it is one of several processes, which end together.
    Returns:
      the command's own code; 2 for a mistake of the user, 1 for a full disk or a path that cannot be used, 130 for
      Ctrl-C, 143 for SIGTERM. Errors that nobody foresaw are raised, or shown with code 1 if there are several
      processes.
    """
    try:
        code = _outcome(command)
    except Exception:
        if not several:
            raise
        with contextlib.suppress(OSError):
            traceback.print_exc()
        code = _fail(
            "if another process ended first, its log says why; the same commands go on from there", 1
        )
    if several:
        from infinity_jax.runtime import distributed

        return distributed.end(code)
    return code


def _outcome(command: Callable[[], int]) -> int:
    try:
        return command()
    except BaseException as error:
        # Whatever an interruption became on its way: a library may raise something else for it.
        if (number := stop_signals.ending()) is not None:
            return _fail("interrupted" if number == signal.SIGINT else "ended by SIGTERM", 128 + number)
        code = _explained(error)
        if code is None:
            raise
        return code


def _explained(error: BaseException) -> int | None:
    """Says what the user can do about an error, and returns the exit code; None if there is nothing."""
    if isinstance(error, UserError):
        return _fail(str(error), 2)
    if isinstance(error, KeyboardInterrupt):
        return _fail("interrupted", 130)
    if not isinstance(error, OSError):
        return None
    if error.errno in _FULL_DISK:
        where = f" while writing {error.filename}" if error.filename else ""
        return _fail(f"the disk is full{where}; make room and run the same command again, it goes on", 1)
    if error.filename is None:
        return None
    return _fail(f"{error.strerror}: {error.filename}; check the path and its permissions", 1)


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # the log may lie on the disk that is full
        print(f"infinity-jax: error: {printable(message)}", file=sys.stderr)
    return code
