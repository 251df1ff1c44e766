"""Runs of several real processes on the loopback."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from helpers.paths import PROGRAMS, PYTHONPATH
from infinity_jax.training import run_log

PROGRAM = PROGRAMS / "process_run.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": PYTHONPATH}


def free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Run:
    """The processes of a run of process_run.py, started at once; `last` are more arguments for the last of them."""

    def __init__(
        self, workdir: Path, count: int, devices: int, mesh: str, steps: int, last: tuple = (), **kw
    ):
        address = f"127.0.0.1:{free_port()}"
        self.processes = []
        for i in range(count):
            several = ["--coordinator", address, "--processes", str(count), "--process", str(i)]
            command = [sys.executable, PROGRAM, *(several if count > 1 else []), "--platform", "cpu"]
            command += [f"--{key.replace('_', '-')}={value}" for key, value in kw.items()]
            command += last if i == count - 1 else []
            self.processes.append(
                subprocess.Popen(
                    [*map(str, command), str(workdir), str(steps), mesh, str(devices)],
                    env=ENVIRONMENT,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def finish(self) -> tuple[list[int], list[str]]:
        """Exit codes and what was said on stderr."""
        said = [process.communicate()[1] for process in self.processes]
        return [process.returncode for process in self.processes], said


def lines(workdir: Path) -> list[dict]:
    """The metrics of a run without what depends on the clock."""
    records = run_log.read_lines(workdir / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k not in run_log.TIMING_KEYS} for record in records]
