"""Several processes as one run: they start together, or say what is missing, and end together.

A process that dies without a word (power, SIGKILL) takes the others with it: jax ends them, exit code 134, at once if
it was process 0, else when its heartbeats have been missing for `HEARTBEAT_SECONDS`. The same commands go on from the
newest complete checkpoint.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from infinity_jax.errors import UserError
from infinity_jax.files import locks, progress
from infinity_jax.runtime import rendezvous
from infinity_jax.runtime.processes import Processes

T = TypeVar("T")
HEARTBEAT_SECONDS = 100
# At the end of a run, for processes that have still to write something.
_SHUTDOWN_SECONDS = 300
# After an error: the others may have the same one, and each should tell its own.
_LAST_WORDS_SECONDS = 5
_BARRIER_SECONDS = 7 * 24 * 3600


def start(options: Processes, heartbeat_seconds: int = HEARTBEAT_SECONDS) -> None:
    """Connects the processes of a run and checks what was found. Call it before anything else of jax.

    Args:
      heartbeat_seconds: how long a process may be silent until the others give it up.
    Raises:
      UserError: a process is missing or there is one too many, a port is taken, the devices are of another platform or
        not alike. It comes within `options.start_timeout`; where jax itself hangs, the process ends then with the
        message on stderr and exit code 2.
    """
    stage = ["waiting for the other processes"]
    with _ended_after(options, stage):
        if options.coordinator is not None:
            _connect(options, heartbeat_seconds, stage)
        elif jax.process_count() > 1:  # a TPU pod knows its hosts without being told
            raise UserError(
                f"this is one of {jax.process_count()} processes; start each with --coordinator auto"
            )
        if options.coordinator is not None or options.platform is not None:
            stage[0] = "waiting for the devices"
            _check(options)
        if options.coordinator is not None and jax.process_index() > 0:
            progress.be_silent()


def _connect(options: Processes, heartbeat_seconds: int, stage: list[str]) -> None:
    # Ours is the message that is printed: jax's own limit comes later.
    limits: dict[str, Any] = {
        "initialization_timeout": int(options.start_timeout) + 60,
        "heartbeat_timeout_seconds": heartbeat_seconds,
        "shutdown_timeout_seconds": _SHUTDOWN_SECONDS,
    }
    if options.coordinator == "auto":
        try:
            jax.distributed.initialize(**limits)
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"--coordinator auto: jax found no cluster here ({error}); it knows Cloud TPU, GKE, Slurm and Open "
                "MPI. Elsewhere give --coordinator HOST:PORT --processes N --process I"
            ) from error
        return
    assert options.coordinator and options.processes is not None and options.process is not None
    # A second less, so that its message, which says more, comes before that of `_ended_after`.
    seconds = max(options.start_timeout - 1, options.start_timeout / 2)
    rendezvous.meet(options.coordinator, options.processes, options.process, seconds)
    stage[0] = "connecting jax"
    jax.distributed.initialize(
        options.coordinator,
        options.processes,
        options.process,
        cluster_detection_method="deactivate",
        **limits,
    )


def _check(options: Processes) -> None:
    """Raises UserError unless processes and devices are those that were asked for."""
    try:
        devices, here = jax.devices(), jax.local_devices()
    except RuntimeError as error:
        raise UserError(
            f"jax cannot use its devices: {error}; expected platform: {options.platform or 'any'}, "
            f"JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS', '')!r}"
        ) from error
    found = devices[0].platform
    if options.platform not in (None, found):
        raise UserError(
            f"expected devices of platform {options.platform} (--platform), found {len(devices)} of platform {found}; "
            f"install jax for {options.platform}, see that the driver works and no other process holds the devices "
            f"(JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS', '')!r})"
        )
    count = jax.process_count()
    if options.processes not in (None, count):
        raise UserError(
            f"expected {options.processes} processes (--processes), jax found {count}; "
            "start as many as --processes says, on machines of one slice or cluster"
        )
    if options.coordinator is not None:
        _check_alike(devices)
        logging.info(
            "process %d of %d: %d of %d devices are here (%s)",
            *(jax.process_index(), count, len(here), len(devices), here[0].device_kind),
        )
    if jax.process_index() != 0:
        logging.set_verbosity(logging.WARNING)  # process 0 speaks for all


def _check_alike(devices: list) -> None:
    """Raises UserError unless every process has as many devices as the others, of the same kind."""
    processes = [
        [device.device_kind for device in devices if device.process_index == process]
        for process in range(jax.process_count())
    ]
    found = [f"{len(kinds)} x {', '.join(sorted(set(kinds)))}" for kinds in processes]
    if len(set(found)) > 1:
        raise UserError(
            "all processes must have the same devices; found "
            + "; ".join(f"process {i}: {text}" for i, text in enumerate(found))
            + ". Leave out the odd machine or give each process the same devices"
        )


@contextlib.contextmanager
def _ended_after(options: Processes, stage: list[str]) -> Iterator[None]:
    """Ends the process with a message if the block takes longer than `options.start_timeout`: jax would hang."""

    def end() -> None:
        print(
            f"infinity-jax: error: the start did not end within {options.start_timeout:g} s (--start-timeout), it was "
            f"{stage[0]}. Expected: {options.processes or 'any number of'} processes, platform "
            f"{options.platform or 'any'}. This is process {'?' if options.process is None else options.process}; "
            "the logs of the others say what they found. See that all were started and reach each other",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    timer = threading.Timer(options.start_timeout, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def end(code: int) -> int:
    """Leaves the run; every command that called `start` ends with it. Returns the exit code.

    After an error (`code` not 0) it does not return: jax would wait at exit for the others, which may not know of it.
    """
    if not jax.distributed.is_initialized():
        return code
    if code == 0:
        jax.distributed.shutdown()
        return code
    with contextlib.suppress(Exception):  # the others may be gone
        _barrier("last words", _LAST_WORDS_SECONDS)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def lead_first(make: Callable[[], T]) -> T:
    """Calls `make()` on process 0 and, when that is done, on the others.

    For what is kept on disk: the others find it there if they share the disk, and make it themselves if not.
    """
    if jax.process_count() == 1:
        return make()
    if jax.process_index() == 0:
        made = make()
        _barrier("lead first", _BARRIER_SECONDS)
        return made
    _barrier("lead first", _BARRIER_SECONDS)
    return make()


@contextlib.contextmanager
def alone(file: Path, doing: str, remedy: str) -> Iterator[None]:
    """Lets one run at a time into the block, as `locks.alone`; of a run's processes the first holds the lock.

    Raises:
      UserError: another run holds it; all processes of this one raise it.
    """
    with contextlib.ExitStack() as held:
        refusal = None
        if jax.process_index() == 0:
            try:
                held.enter_context(locks.alone(file, doing, remedy))
            except locks.Held as error:
                refusal = error
        refused = refusal is not None
        if jax.process_count() > 1:
            refused = bool(multihost_utils.broadcast_one_to_all(np.int32(refused)))
        if refused:
            raise refusal or UserError(f"another process {doing} now; the log of process 0 names it")
        yield


def _barrier(name: str, seconds: int) -> None:
    """Waits for all processes without using the devices."""
    ocp.multihost.get_barrier_sync_fn()(key=name, timeout_ms=seconds * 1000)
