"""The processes of a run find each other over TCP before jax connects them.

jax ends the process, without an exception, when a process is missing or a port is taken, and accepts some wrong
counts. Here such mistakes become one message: who was expected, who came, what to do.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from importlib import metadata

from infinity_jax.errors import UserError

_GREETING = "infinity-jax"
_LONGEST_LINE = 1 << 16


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


def _host(port: int, hello: dict, deadline: float, seconds: float) -> None:
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
    listener: socket.socket, arrived: dict[int, socket.socket], hello: dict, deadline: float, seconds: float
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
        number = other["process"]
        if other["processes"] != hello["processes"]:
            arrived[-1] = connection  # gets the answer too
            return (
                f"expected {hello['processes']} processes (--processes of process 0), but process {number} at "
                f"{address} was started with --processes {other['processes']}; give all the same number"
            )
        if other["jax"] != hello["jax"]:
            arrived[-1] = connection
            return (
                f"process 0 has jax {hello['jax']}, process {number} at {address} has {other['jax']}; "
                "install the same version everywhere"
            )
        if number in arrived and not _ended(arrived[number]):
            arrived[-1] = connection
            return (
                f"two processes were started with --process {number}, the second at {address}; number them from 0 to "
                f"{hello['processes'] - 1}"
            )
        arrived[number] = connection
    return None


def _join(host: str, port: int, hello: dict, deadline: float, seconds: float) -> None:
    """Another process: tells process 0 that it is there and waits for its answer."""
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


def _read(connection: socket.socket, deadline: float) -> dict | None:
    """One line of ours, or None if what is there speaks otherwise, says nothing until `deadline`, or ends."""
    with contextlib.suppress(OSError, ValueError):
        line = b"".join(_until_newline(connection, deadline))
        message = json.loads(line)
        if isinstance(message, dict) and message.get("run") == _GREETING:
            return message
    return None


def _until_newline(connection: socket.socket, deadline: float) -> Iterator[bytes]:
    size = 0
    while size < _LONGEST_LINE:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        part = connection.recv(4096)
        size += len(part)
        yield part
        if not part or part.endswith(b"\n"):
            return


def _ended(connection: socket.socket) -> bool:
    """Whether the process at the other end is gone (it sends nothing while it waits)."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        connection.setblocking(True)
