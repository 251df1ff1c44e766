"""Compiled programs are kept on disk: a command that starts again loads in a second what took it a minute."""

import hashlib
import os
import platform
import tempfile
from pathlib import Path

from absl import logging

from infinity_jax.files import paths

_MOST_BYTES = 2 << 30


def keep_programs() -> None:
    """Lets jax keep programs that took a second to compile in `data_dir()/compiled`, at most 2 GiB of them.

    Call it before jax is imported. Whoever set JAX_COMPILATION_CACHE_DIR keeps their own folder; empty, it is off.
    A folder that cannot be written is said in the log, and nothing is kept.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = paths.data_dir() / "compiled" / _machine()
    try:
        # Whoever can write there can run code here.
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove_unfinished(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        logging.warning(
            "compiled programs cannot be kept in %s (%s), so each start compiles again; make it writable, or set "
            "INFINITY_DATA to another folder",
            folder,
            error.strerror,
        )
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_MOST_BYTES))


def _machine() -> str:
    """A name for this kind of processor and this user: code for a CPU may use instructions that another one lacks."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = [line for line in lines if line.startswith(("flags", "Features"))][:1]
    except OSError:  # not Linux
        features = [platform.processor()]
    owner = os.getuid() if hasattr(os, "getuid") else ""
    parts = [platform.system(), platform.machine(), *features, str(owner)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _remove_unfinished(folder: Path) -> None:
    """Removes programs that a full disk or a kill left half written.

    jax writes a program and then the time of its use; without the latter it neither replaces the program nor any more
    keeps others.
    """
    for program in folder.glob("*-cache"):
        if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
            program.unlink(missing_ok=True)
