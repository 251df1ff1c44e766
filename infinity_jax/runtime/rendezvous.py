"""The processes of a run find each other over TCP before jax connects them.

This stays because `jax.distributed.initialize` of jax 0.10.2 and 0.12 ends the process with exit code 134 and a stack
of C++ when a process is missing, and connects processes that were started with different counts. Here such mistakes
become one message (tests/runtime/test_start.py): who was expected, who came, what to do.
"""

import contextlib
import json
import os
import socket
import time
from importlib import metadata
from typing import Any

from infinity_jax.errors import UserError

_GREETING = "infinity-jax"
_LONGEST_LINE = 1 << 16
# "run", "process", "processes" and "jax" of a process, or "run" and "error" of the answer.
Hello = dict[str, Any]


def meet(coordinator: str, processes: int, process: int, seconds: float) -> None:
    """Returns once all processes of the run have met at the coordinator's address.

    Args:
      coordinator: "HOST:PORT" of process 0, which listens there until all have come.
      processes: how many there are.
      process: which one this is, from 0.
      seconds: how long to wait.
    Raises:
      UserError: an address or a number that cannot be; the port is taken; a process is missing, was started twice,
        or with other numbers or another version of jax. All processes that have met get the same message.
    """
    host, port = _address(coordinator)
    if processes < 1 or not 0 <= process < processes:
        raise UserError(
            f"process {process} of {processes} cannot be: --processes is at least 1, --process from 0 to one less"
        )
    hello = {"run": _GREETING, "process": process, "processes": processes, "jax": metadata.version("jax")}
    deadline = time.monotonic() + seconds
    if process == 0:
        _host(port, hello, deadline, seconds)
    else:
        _join(host, port, hello, deadline, seconds)


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator {coordinator!r} is not HOST:PORT, like 10.0.0.1:8476, nor auto")
    return host.strip("[]"), int(port)


def _host(port: int, hello: Hello, deadline: float, seconds: float) -> None:
    """Process 0: waits for all others, then tells each that it may go on, or why not."""
    dual = socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            ("", port), family=socket.AF_INET6 if dual else socket.AF_INET, dualstack_ipv6=dual
        )
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at port {port}: {os.strerror(error.errno or 0)}; "
            "end what uses it, or give all processes another port in --coordinator"
        ) from error
    arrived: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(listener)
        problem = _gather(listener, arrived, hello, deadline, seconds)
        for connection in arrived.values():
            stack.enter_context(connection)
            with contextlib.suppress(OSError):  # one that has ended meanwhile
                connection.sendall(json.dumps({"run": _GREETING, "error": problem}).encode() + b"\n")
    if problem:
        raise UserError(problem)


def _gather(
    listener: socket.socket, arrived: dict[int, socket.socket], hello: Hello, deadline: float, seconds: float
) -> str | None:
    """Fills `arrived`, by process; returns what is wrong, or None once all have come."""
    expected = set(range(1, hello["processes"]))
    while expected - arrived.keys():
        try:
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            connection, (address, *_) = listener.accept()
            address = address.removeprefix("::ffff:")  # of IPv4
        except TimeoutError:
            missing = ", ".join(map(str, sorted(expected - arrived.keys())))
            return (
                f"expected {hello['processes']} processes within {seconds:g} s, came: "
                f"{', '.join(map(str, sorted([0, *arrived])))}; missing: {missing}. Look whether those were started "
                "(their logs), with the same --coordinator and --processes, and reach this machine"
            )
        other = _read(connection, min(deadline, time.monotonic() + 5))
        if other is None:  # a stranger, like a scan of ports
            connection.close()
            continue
        if problem := _contradiction(hello, other, address, arrived):
            arrived[-1] = connection  # gets the answer too
            return problem
        arrived[other["process"]] = connection
    return None


def _contradiction(hello: Hello, other: Hello, address: str, arrived: dict[int, socket.socket]) -> str | None:
    """Says how a process that came to process 0 contradicts it or the others that have; None if it does not."""
    number = other["process"]
    if other["processes"] != hello["processes"]:
        return (
            f"expected {hello['processes']} processes (--processes of process 0), but process {number} at "
            f"{address} was started with --processes {other['processes']}; give all the same number"
        )
    if other["jax"] != hello["jax"]:
        return (
            f"process 0 has jax {hello['jax']}, process {number} at {address} has {other['jax']}; "
            "install the same version everywhere"
        )
    if number in arrived and not _ended(arrived[number]):
        return (
            f"two processes were started with --process {number}, the second at {address}; number them from 0 to "
            f"{hello['processes'] - 1}"
        )
    return None


def _join(host: str, port: int, hello: Hello, deadline: float, seconds: float) -> None:
    """Tells process 0 that another process is there, and waits for its answer."""
    last = ""
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(
                (host, port), timeout=min(5, deadline - time.monotonic())
            ) as connection:
                connection.sendall(json.dumps(hello).encode() + b"\n")
                answer = _read(connection, deadline + 0.5)  # process 0 may give up now, and say why
        except OSError as error:
            last = f"{error.strerror or error}"
        else:
            if answer is not None and answer["error"]:
                raise UserError(answer["error"])
            if answer is not None:
                return
            last = "it was reached, but its answer did not come"
        time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))
    raise UserError(
        f"process {hello['process']} of {hello['processes']} got no word from process 0 at {host}:{port} within "
        f"{seconds:g} s ({last}); look at the log of process 0, whether all processes were started with the same "
        "--coordinator, and whether this machine reaches it"
    )


def _read(connection: socket.socket, deadline: float) -> Hello | None:
    """Reads one line of ours; None if what is there speaks otherwise, says nothing until `deadline`, or ends."""
    line = b""
    with contextlib.suppress(OSError, ValueError):
        while not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            part = connection.recv(4096)
            if not part:
                break
            line += part
        message = json.loads(line)
        if isinstance(message, dict) and message.get("run") == _GREETING:
            return message
    return None


def _ended(connection: socket.socket) -> bool:
    """Tells whether the process at the other end is gone (it sends nothing while it waits)."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.setblocking(True)
