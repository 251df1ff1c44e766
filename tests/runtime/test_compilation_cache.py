"""Compiled programs are kept for the next start, and a damaged or closed folder never stops a run."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os
from absl import logging
from infinity_jax.runtime import start_up
start_up.log_to_stderr()
start_up.keep_programs()
import jax
found = []
jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
jax.jit(lambda x: x * 3 + 1)(2.0)
print(sum(event == "/jax/compilation_cache/cache_hits" for event in found))
"""
CACHED = ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE")


def start(data, **environment) -> tuple[int, str]:
    """Compiles one small program in a process of its own: programs found in the cache, and what was said."""
    others = {name: value for name, value in os.environ.items() if name not in CACHED}
    everything = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=others | everything | {"INFINITY_DATA": str(data)} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout), done.stderr


def test_the_next_start_finds_the_programs(tmp_path):
    assert start(tmp_path) == (0, "")
    (folder,) = (tmp_path / "compiled").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    found, said = start(tmp_path)
    assert found > 0 and said == ""

    # A full disk or a kill leaves half a program, without the time of its use.
    for program in folder.glob("*-cache"):
        program.write_bytes(program.read_bytes()[:50])
        program.with_name(program.name.replace("-cache", "-atime")).unlink()
    assert start(tmp_path) == (0, "")
    assert start(tmp_path) == (found, "")

    for program in folder.glob("*-cache"):
        program.write_bytes(b"damaged")
    missed, said = start(tmp_path)
    assert missed == 0 and "Error reading persistent compilation cache entry" in said


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "compiled").write_bytes(b"a file")
    found, said = start(tmp_path)
    assert found == 0 and "each start compiles again" in said and str(tmp_path) in said


@pytest.mark.parametrize("own", ["", "programs"])
def test_a_folder_of_ones_own_is_kept(tmp_path, own):
    mine = str(tmp_path / own) if own else ""
    start(tmp_path / "data", JAX_COMPILATION_CACHE_DIR=mine)
    assert not (tmp_path / "data").exists()
    assert bool(own) == any(tmp_path.glob("*/*-cache"))
