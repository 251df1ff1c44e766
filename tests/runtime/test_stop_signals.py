"""A process ends within moments of a signal, whatever it is doing, with its exit code and without half a file."""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import paths

GRACE = 0.5
START = f"""
import sys, time
from infinity_jax.cli import exit_codes
from infinity_jax.runtime import stop_signals
stop_signals.GRACE_SECONDS = {GRACE}
def ready():
    print("ready", flush=True)
def main(work):
    def run():
        stop_signals.install()
        work()
        return 0
    code = exit_codes.of(run, False)
    if stop_signals.ending():
        stop_signals.leave(code)
    sys.exit(code)
"""
WAITS = """
def work():
    ready()
    time.sleep(60)
main(work)
"""
SWALLOWED = """
import gc
def lost(phase, info):
    if phase == "start":
        ready()
        gc.callbacks.clear()
        time.sleep(60)
def work():
    gc.callbacks.append(lost)
    gc.collect()
    time.sleep(60)
main(work)
"""
IN_C = """
import ctypes
libc = ctypes.CDLL(None)
def work():
    ready()
    condition, lock = ctypes.create_string_buffer(4096), ctypes.create_string_buffer(4096)
    libc.pthread_mutex_lock(lock)
    libc.pthread_cond_wait(condition, lock)  # a signal does not wake it
main(work)
"""
WRAPPED = """
def work():
    ready()
    try:
        time.sleep(60)
    except BaseException as error:
        raise RuntimeError("the library's word for it") from error
main(work)
"""
CAUGHT = """
def work():
    ready()
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
main(work)
"""


def stopped(tmp_path, code, number):
    """Starts a process with this code, sends the signal when it is ready; its exit code, words, and seconds."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # an ignored one would be handed on
    environment = {**os.environ, "PYTHONPATH": paths.PYTHONPATH}
    command = [sys.executable, "-c", START + code, str(tmp_path)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, handler)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    begin = time.monotonic()
    _, words = process.communicate(timeout=20)
    return process.returncode, words, time.monotonic() - begin


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("code", [WAITS, SWALLOWED, IN_C, WRAPPED, CAUGHT])
def test_every_process_ends_with_its_code(code, number, tmp_path):
    ended, words, seconds = stopped(tmp_path, code, number)
    assert ended == 128 + number, words
    assert seconds < GRACE + 2
    assert "infinity-jax: error: " in words
    if code in (WAITS, SWALLOWED, WRAPPED):
        assert "Traceback" not in words and seconds < GRACE


WRITES = """
import pathlib
from infinity_jax.files import atomic
def work():
    here = pathlib.Path(sys.argv[1])
    with atomic.writing_folder(here / "folder") as folder, atomic.writing(here / "file") as file:
        file.write_text("half")
        (folder / "a").write_text("half")
        ready()
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass
main(work)
"""


def test_a_process_that_is_ended_leaves_nothing_half_written(tmp_path):
    assert stopped(tmp_path, WRITES, signal.SIGTERM)[0] == 143
    assert list(tmp_path.iterdir()) == []


TRAINS = """
class jax:
    process_count = staticmethod(lambda: 1)
sys.modules["jax"] = jax
def work():
    with stop_signals.received() as asked:
        if "before" in sys.argv[1]:
            ready()
            time.sleep(60)
        assert asked() is None
        ready()
        begin = time.monotonic()
        while asked() is None:
            time.sleep(0.01)
        time.sleep(3 * stop_signals.GRACE_SECONDS)  # saves
        print("saved", flush=True)
        if "twice" in sys.argv[1]:
            time.sleep(60)
        raise SystemExit(0)
main(work)
"""


def test_a_run_takes_the_first_signal_for_itself(tmp_path):
    ended, words, seconds = stopped(tmp_path, TRAINS, signal.SIGTERM)
    assert ended == 0 and words == "" and seconds > 3 * GRACE
    ended, words, seconds = stopped(tmp_path / "before", TRAINS, signal.SIGTERM)
    assert ended == 143 and "ended by SIGTERM" in words and seconds < GRACE, "there is nothing to save yet"


def test_the_command_line_answers_before_anything_is_imported(tmp_path):
    """SIGTERM while modules load ends the process as the system does, and so does SIGINT: no traceback."""
    code = (
        "import os, signal, sys\n"
        "from infinity_jax.cli import __main__ as entry\n"
        "sys.modules['infinity_jax.cli.main'] = None\n"
        "class Finder:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'infinity_jax.cli.main': os.kill(os.getpid(), int(sys.argv[1]))\n"
        "sys.meta_path.insert(0, Finder()); del sys.modules['infinity_jax.cli.main']\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "entry.run()\n"
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        environment = {**os.environ, "PYTHONPATH": paths.PYTHONPATH}
        done = subprocess.run(
            [sys.executable, "-c", code, str(int(number))], env=environment, capture_output=True
        )
        assert done.returncode == -number and done.stderr == b""
