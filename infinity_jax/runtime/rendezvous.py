"""The processes of a run find each other over TCP before jax connects them.

This stays because `jax.distributed.initialize` of jax 0.10.2 and 0.12 ends the process with exit code 134 and a stack
of C++ when a process is missing, and connects processes that were started with different counts. Here such mistakes
become one message (tests/runtime/test_start.py): who was expected, who came, what to do.
"""

import contextlib
import dataclasses
import json
import os
import selectors
import socket
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

from infinity_jax.errors import UserError
from infinity_jax.files import reading

_GREETING = "infinity-jax"
_LONGEST_LINE = 1 << 14
# Connections that have not said yet who they are: for so long, and so many of them.
_PATIENCE_SECONDS, _MOST_STRANGERS = 5.0, 200
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
    if not host or not port.isdecimal() or len(port) > 5 or not 0 < int(port) < 2**16:
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
                connection.settimeout(_PATIENCE_SECONDS)
                connection.sendall(json.dumps({"run": _GREETING, "error": problem}).encode() + b"\n")
    if problem:
        raise UserError(problem)


@dataclasses.dataclass
class _Guest:
    """A connection at process 0: what it has said so far, and until when it may say who it is."""

    connection: socket.socket
    address: str
    until: float
    line: bytes = b""


def _gather(
    listener: socket.socket, arrived: dict[int, socket.socket], hello: Hello, deadline: float, seconds: float
) -> str | None:
    """Fills `arrived`, by process; returns what is wrong, or None once all have come.

    Many connections are read at once, so that one which says nothing, or a byte now and then, keeps nobody waiting. One
    that is closed gives its place free.
    """
    expected = set(range(1, hello["processes"]))
    guests: dict[socket.socket, _Guest] = {}
    listener.setblocking(False)

    def drop(connection: socket.socket) -> None:
        selector.unregister(connection)
        connection.close()
        guests.pop(connection, None)

    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while expected - arrived.keys():
            if time.monotonic() >= deadline:
                return _missing(hello, arrived, seconds)
            for guest in [guest for guest in guests.values() if guest.until < time.monotonic()]:
                drop(guest.connection)
            for key, _ in selector.select(min(0.5, max(0.0, deadline - time.monotonic()))):
                if key.fileobj is listener:
                    _accept(listener, guests, selector, drop)
                    continue
                connection: Any = key.fileobj
                gone = [number for number, there in arrived.items() if there is connection]
                if gone:  # it has nothing to say while it waits
                    del arrived[gone[0]]
                    drop(connection)
                elif connection in guests:
                    other = _heard(guests[connection])
                    if other is None:
                        continue
                    address = guests.pop(connection).address
                    if not other:
                        drop(connection)
                    elif problem := _contradiction(hello, other, address, arrived):
                        arrived[-1] = connection  # gets the answer too
                        return problem
                    else:
                        arrived[other["process"]] = connection
        for guest in list(guests.values()):
            drop(guest.connection)
    return None


def _accept(
    listener: socket.socket,
    guests: dict[socket.socket, _Guest],
    selector: selectors.BaseSelector,
    drop: Callable[[socket.socket], None],
) -> None:
    with contextlib.suppress(OSError):  # it has gone again
        connection, (address, *_) = listener.accept()
        connection.setblocking(False)
        if len(guests) >= _MOST_STRANGERS:
            drop(next(iter(guests)))  # the one that has been silent for longest
        until = time.monotonic() + _PATIENCE_SECONDS
        guests[connection] = _Guest(connection, address.removeprefix("::ffff:"), until)  # of IPv4
        selector.register(connection, selectors.EVENT_READ)


def _heard(guest: _Guest) -> Hello | None:
    """Reads what a guest says now: who it is; {} for a stranger, like a scan of ports; None if more is to come."""
    try:
        part = guest.connection.recv(4096)
    except BlockingIOError:
        return None
    except OSError:
        return {}
    guest.line += part
    if part and not guest.line.endswith(b"\n") and len(guest.line) < _LONGEST_LINE:
        return None
    return _of_process(_message(guest.line)) or {}


def _missing(hello: Hello, arrived: dict[int, socket.socket], seconds: float) -> str:
    missing = ", ".join(map(str, sorted(set(range(1, hello["processes"])) - arrived.keys())))
    return (
        f"expected {hello['processes']} processes within {seconds:g} s, came: "
        f"{', '.join(map(str, sorted([0, *arrived])))}; missing: {missing}. Look whether those were started "
        "(their logs), with the same --coordinator and --processes, and reach this machine"
    )


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
    if number in arrived:
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
        except (OSError, ValueError) as error:  # ValueError: of a name that no host can have
            last = str(getattr(error, "strerror", None) or error)
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
    """Reads the answer; None if what is there speaks otherwise, says nothing until `deadline`, or ends."""
    line = b""
    with contextlib.suppress(OSError):
        while not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            connection.settimeout(left)
            part = connection.recv(4096)
            if not part:
                break
            line += part
    message = _message(line)
    answers = message is not None and isinstance(message.get("error", 0), str | None)
    return message if answers else None


def _message(line: bytes) -> Hello | None:
    """Parses a line of ours; None if it is none."""
    with contextlib.suppress(ValueError):
        message = reading.parse_json(line)
        if isinstance(message, dict) and message.get("run") == _GREETING:
            return message
    return None


def _of_process(message: Hello | None) -> Hello | None:
    """Returns the message if a process can have sent it, which has looked at its own numbers."""
    if message is None or not isinstance(message.get("jax"), str) or len(message["jax"]) > 100:
        return None
    process, processes = message.get("process"), message.get("processes")
    if type(process) is not int or type(processes) is not int or not 0 < process < processes < 1 << 31:
        return None
    return message
