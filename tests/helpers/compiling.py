"""`infinity-jax compile` in a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e '.[tpu]'"
)


def command(*arguments, folder: Path):
    """(exit code, numbers or None, what was printed)."""
    file = folder / "numbers.json"
    file.unlink(missing_ok=True)
    # Compiles sooner; memory and FLOP of these are as good.
    quick = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_OPTIMIZATION_LEVEL": "O0"}
    done = subprocess.run(
        [sys.executable, "-m", "infinity_jax.cli", "compile", "--json", str(file), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | quick,
    )
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done.returncode, json.loads(file.read_text()) if file.exists() else None, done.stdout + done.stderr
