"""One writer at a time; a killed one keeps nobody out."""

import signal
import subprocess
import sys
import threading

import pytest

from infinity_jax.errors import UserError
from infinity_jax.files import atomic, locks

HOLD = """
import sys, time
from pathlib import Path
from infinity_jax.files import atomic, locks
with locks.alone(Path(sys.argv[1]), "trains", "wait"), atomic.writing(Path(sys.argv[1]).with_name("a.txt")) as half:
    half.write_text("half")
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a lock and writes a file."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / ".lock")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_holder_is_named_and_a_kill_ends_its_lock(tmp_path, holder):
    lock = tmp_path / ".lock"
    for _ in range(2):  # whoever looks must not take the holder's name away
        with (
            pytest.raises(
                UserError, match=rf"another process trains in a now, process {holder.pid} on .*-c.*; give"
            ),
            locks.alone(lock, "trains in a", "give another"),
        ):
            pass
    atomic.clean(tmp_path)
    assert len(list(tmp_path.glob(".a.txt.*.unfinished"))) == 1, "what is being written stays"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locks.alone(lock, "trains in a", "give another"):
        atomic.clean(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert not list(tmp_path.iterdir())


def test_those_who_wait_come_one_after_the_other(tmp_path):
    inside, most, entered = [0], [0], threading.Barrier(8)

    def work() -> None:
        entered.wait()
        for _ in range(20):
            with locks.alone(tmp_path / "folder" / ".lock", "writes"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and not list((tmp_path / "folder").iterdir())
