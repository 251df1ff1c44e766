"""A start that cannot complete ends in time and says what was expected and what was seen."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from importlib import metadata

import jax
import pytest
from helpers.processes import free_port

from infinity_jax.errors import UserError
from infinity_jax.runtime import distributed, rendezvous
from infinity_jax.runtime.processes import Processes


def meet_all(arguments: list[tuple[int, int]], seconds: float) -> list[str]:
    """What each process, given as (processes, process), is told: "" if it may go on."""
    address = f"127.0.0.1:{free_port()}"
    told = [""] * len(arguments)

    def meet(place: int, processes: int, process: int) -> None:
        try:
            rendezvous.meet(address, processes, process, seconds)
        except UserError as error:
            told[place] = str(error)

    threads = [threading.Thread(target=meet, args=(i, *numbers)) for i, numbers in enumerate(arguments)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_all_processes_meet():
    assert meet_all([(3, 2), (3, 0), (3, 1)], 60.0) == [""] * 3
    assert meet_all([(1, 0)], 60.0) == [""]


def test_a_missing_process_is_named_to_all_that_came():
    begin = time.monotonic()
    lead, other = meet_all([(4, 0), (4, 2)], 1.0)
    assert time.monotonic() - begin < 1 + 5  # no part of it has a longer wait of its own
    assert lead == other or "got no word" in other
    assert "expected 4 processes within 1 s, came: 0, 2; missing: 1, 3" in lead


def test_a_missing_process_0_is_said():
    (told,) = meet_all([(2, 1)], 0.5)
    assert "got no word from process 0" in told and "Connection refused" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [(2, 0), (3, 1)],
            "expected 2 processes .* but process 1 at 127.0.0.1 was started with --processes 3",
        ),
        ([(3, 0), (3, 1), (3, 1)], "two processes were started with --process 1"),
    ],
)
def test_numbers_that_contradict_each_other_end_all(arguments, message):
    told = meet_all(arguments, 60.0)
    assert all(re.search(message, text) for text in told)


def test_a_taken_port_is_said():
    with (
        socket.create_server(("", 0)) as taken,
        pytest.raises(UserError, match=r"cannot listen at port \d+: Address"),
    ):
        rendezvous.meet(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0, 60.0)


HELLO = {"run": "infinity-jax", "process": 1, "processes": 3, "jax": jax.__version__}
STRANGERS = {
    "http": b"GET / HTTP/1.1\n",
    "no JSON": b"{\n",
    "other JSON": b"[1]\n",
    "deep": b"[" * 10_000 + b"\n",
    "bytes": b"\xff\xfe\n",
    "long": b"a" * 1_000_000,
    "nothing": b"",
    "half a line": b'{"run": "infinity-jax"',
    **{
        f"{name}={value!r}": json.dumps({**HELLO, name: value}).encode() + b"\n"
        for name, values in {
            "process": (-1, 0, 3, 1.0, True, "1", None, [], {}, 10**30, float("nan")),
            "processes": (None, "2", 1.5, [2], -2, 10**30),
            "jax": (None, 5, "x" * 1000),
        }.items()
        for value in values
    },
    "no numbers": b'{"run": "infinity-jax"}\n',
}


def test_strangers_at_the_port_do_not_matter():
    """All of them at once, and they stay; one that takes a place and leaves gives it free."""
    port = free_port()
    told = []
    lead = threading.Thread(target=lambda: told.append(rendezvous.meet(f"127.0.0.1:{port}", 3, 0, 20.0)))
    lead.start()
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        for content in [*STRANGERS.values(), *[b""] * 50]:
            stranger = stack.enter_context(_connected(port))
            with contextlib.suppress(OSError):
                stranger.sendall(content)
        with _connected(port) as impostor:
            impostor.sendall(json.dumps({**HELLO, "jax": metadata.version("jax")}).encode() + b"\n")
            time.sleep(0.2)
        time.sleep(0.2)
        second = threading.Thread(target=rendezvous.meet, args=(f"127.0.0.1:{port}", 3, 2, 20.0))
        second.start()
        rendezvous.meet(f"127.0.0.1:{port}", 3, 1, 20.0)
        second.join()
        lead.join()
    assert told == [None] and time.monotonic() - begin < 5


def _connected(port):
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\n",
        b'{"run": "infinity-jax"}\n',
        b'{"run": "infinity-jax", "error": 3}\n',
        b"[" * 10_000 + b"\n",
        b"a" * 1_000_000,
        b"",
    ],
)
def test_a_stranger_in_the_place_of_process_0(answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    with server.accept()[0] as connection:
                        connection.recv(4096)
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        begin = time.monotonic()
        with pytest.raises(UserError, match=r"got no word from process 0 .*(its answer did not come|reset)"):
            rendezvous.meet(f"127.0.0.1:{server.getsockname()[1]}", 2, 1, 0.5)
        assert time.monotonic() - begin < 3


def test_an_answer_that_drips_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError), server.accept()[0] as connection:
                while True:
                    connection.sendall(b"a")
                    time.sleep(0.05)

        threading.Thread(target=serve, daemon=True).start()
        begin = time.monotonic()
        with pytest.raises(UserError, match="got no word"):
            rendezvous.meet(f"127.0.0.1:{server.getsockname()[1]}", 2, 1, 0.5)
        assert time.monotonic() - begin < 3


def test_a_name_that_no_host_can_have():
    with pytest.raises(UserError, match="got no word"):
        rendezvous.meet(f"{'a' * 300}:80", 2, 1, 0.3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(processes=2), "need --coordinator"),
        (dict(coordinator="10.0.0.1:80"), "needs --processes, how many there are, and --process"),
        (dict(coordinator="auto", process=0), "leave out --process"),
        (dict(start_timeout=0.0), "must be above 0"),
        (dict(start_timeout=float("nan")), "must be above 0"),
        (dict(start_timeout=float("inf")), "must be above 0"),
    ],
)
def test_options_that_do_not_go_together(values, message):
    with pytest.raises(UserError, match=message):
        Processes(**values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere", 2, 1), "is not HOST:PORT"),
        (("host:99999", 2, 1), "is not HOST:PORT"),
        ((f"host:{'9' * 5000}", 2, 1), "is not HOST:PORT"),
        (("host:80", 2, 2), "process 2 of 2 cannot be"),
    ],
)
def test_addresses_and_numbers_that_cannot_be(arguments, message):
    with pytest.raises(UserError, match=message):
        rendezvous.meet(*arguments, seconds=60.0)


def test_another_platform_than_wanted_is_not_fallen_back_to():
    distributed.start(Processes(platform="cpu"))
    with pytest.raises(
        UserError, match=rf"platform tpu \(--platform\), found {jax.device_count()} of platform cpu"
    ):
        distributed.start(Processes(platform="tpu"))


def test_where_jax_hangs_the_process_ends_with_a_message():
    """jax waits for process 1, which ours was made to believe in."""
    code = (
        "import sys; from infinity_jax.runtime import distributed, processes, rendezvous\n"
        "rendezvous.meet = lambda *arguments: None\n"
        "distributed.start(processes.Processes(sys.argv[1], 2, 0, 'cpu', 1.0))\n"
    )
    command = [sys.executable, "-c", code, f"127.0.0.1:{free_port()}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        "did not end within 1 s (--start-timeout), it was connecting jax. Expected: 2 processes"
        in done.stderr
    )


def test_the_command_line_ends_with_code_2():
    command = [
        "train",
        "--config",
        "configs/emoji.py:debug",
        "--workdir",
        "/nowhere",
        "--start-timeout",
        "1.5",
    ]
    several = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--process", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "infinity_jax.cli", *command, *several], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "infinity-jax: error: expected 2 processes" in done.stderr and "missing: 1" in done.stderr
