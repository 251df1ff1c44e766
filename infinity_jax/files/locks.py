"""A folder or a file that one process at a time may write; the lock ends with its process, however that dies."""

import contextlib
import errno
import fcntl
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from absl import logging

from infinity_jax.errors import UserError

# What file systems answer that know no locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL)


class Held(UserError):
    """Another process holds the lock; the message names it."""


@contextlib.contextmanager
def alone(file: Path, doing: str, remedy: str = "") -> Iterator[None]:
    """Lets one process at a time into the block; the file is made, names the holder meanwhile, and is removed.

    A lock of the system, which ends with its process: after a kill the file may stay and locks nothing. On a file
    system without locks a warning is logged and nobody is kept out.

    Args:
      file: whose lock it is, the same for all; its folder is made.
      doing: what the holder does, for the others, like "trains in runs/a".
      remedy: what a user can do where the lock is held; "" waits for its end.
    Raises:
      Held: another process holds it, and there is a `remedy`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        while True:
            lock = held.enter_context(open(file, "a+"))
            if not _taken(lock, doing, remedy) or _is_still(file, lock):
                break
            lock.close()  # its holder has removed it: the others lock a new one
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {socket.gethostname()}: {shlex.join(sys.argv)[:500]}")
        lock.flush()
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def is_held(file: Path) -> bool:
    """Tells whether a process that lives has locked this file or folder by `hold`; True also where nobody can tell."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def hold(file: Path) -> Iterator[None]:
    """Marks a file or folder of this process's own as being written, for `is_held`."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # no locks here: nobody will think that the file is left over
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _taken(lock: IO[str], doing: str, remedy: str) -> bool:
    """Takes the lock; False on a file system that has none."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = f"process {' '.join(lock.read().split()) or 'unknown'}"
        if remedy:
            raise Held(f"another process {doing} now, {holder}; {remedy}") from None
        logging.info("another process %s now, %s: waiting for its end", doing, holder)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logging.warning("%s cannot be locked (%s): see that no other process writes there", lock.name, error)
        return False
    return True


def _is_still(file: Path, lock: IO[str]) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(lock.fileno()))
    except FileNotFoundError:
        return False
