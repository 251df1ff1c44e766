"""Runs the scripts of launch/ for the tests."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from helpers import paths

ROOT = paths.ROOT
COMMAND = [
    "train",
    "--config",
    "configs/t2i.py:2b",
    "--config.mesh.shape=data=2,fsdp=4",
    "--workdir",
    "/bucket/runs/a",
]
SETTINGS = {
    "one_machine.sh": dict(PLATFORM="gpu"),
    "slurm.sh": dict(NODES="2", GPUS="8"),
    "tpu_vm.sh": dict(
        TPU_NAME="pod", ZONE="zone", ACCELERATOR_TYPE="v5litepod-256", HOSTS="64", INFINITY_DATA="/my data"
    ),
    "gke.sh": dict(NAME="pod", IMAGE="image:1", BUCKET="bucket", TPU="tpu-v6e-slice", TOPOLOGY="4x8"),
}


def environment(settings: Mapping[str, str], path: Path | str = "") -> dict[str, str]:
    """What a script sees: `settings` and nothing else of ours; programs in the folder `path` are found first."""
    return {"PATH": f"{path}:{os.environ['PATH']}", "HOME": os.environ.get("HOME", "/"), **settings}


def launch(
    script: str, *words: str, settings: Mapping[str, str], path: Path | str = "", folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Runs a script of launch/ in `folder`; `settings` and `path` as in `environment`."""
    line = ["bash", f"{os.path.relpath(ROOT, folder)}/launch/{script}", *words]
    return subprocess.run(line, cwd=folder, env=environment(settings, path), capture_output=True, text=True)


def dry_run(script: str, *further: str, **settings: str) -> str:
    """What the script would run for `COMMAND` and `further` words, with `SETTINGS` and changes of them."""
    done = launch(script, "--dry-run", *COMMAND, *further, settings=SETTINGS[script] | settings)
    assert done.returncode == 0, done.stderr
    return done.stdout
