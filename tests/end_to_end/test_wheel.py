"""An installed wheel, away from the checkout: its packed configs are found by name, and the first commands work."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import paths

ROOT = paths.ROOT
SOURCES = (
    "infinity_jax",
    "configs",
    "pyproject.toml",
    "setup.py",
    "requirements.txt",
    "README.md",
    "LICENSE",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a command of the installed package in an empty folder; gives what it printed."""
    home = tmp_path_factory.mktemp("wheel")
    # A copy, as building leaves a folder behind, and from here nothing of the checkout can be found by chance.
    for name in SOURCES:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, home / name)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    checked([*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", home / "wheels", home], home)
    (wheel,) = (home / "wheels").glob("*.whl")
    checked([*pip, "install", "--no-deps", "--target", home / "site", wheel], home)
    (home / "empty").mkdir()
    # PYTHONPATH comes before all that is installed, an editable install of the checkout among it.
    paths = {"PYTHONPATH": str(home / "site")}

    def infinity_jax(*arguments: str) -> str:
        command = [sys.executable, home / "site" / "bin" / "infinity-jax", *arguments]
        return checked(command, home / "empty", **paths)

    infinity_jax.folder = home / "empty"
    return infinity_jax


def checked(command, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.long
def test_a_packed_config_trains(run):
    run("train", "--config", "emoji:debug", "--workdir", "w")
    assert (run.folder / "w" / "metrics.jsonl").is_file()


@pytest.mark.long
def test_ablations_and_sweeps_find_their_configs(run):
    for command in (["ablate", "self-correction"], ["sweep", "--config", "sweeps/emoji"]):
        assert "cells" in run(*command, "--dry-run")


@pytest.mark.long
def test_a_picture_is_drawn(run):
    run("sample", "red heart", "--out", "out")
    assert list((run.folder / "out").glob("*.png"))
