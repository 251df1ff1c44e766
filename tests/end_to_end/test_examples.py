"""The scripts of examples/ run as they are, with fewer steps and a small model."""

import subprocess
import sys

import pytest
from helpers.paths import ROOT

SMALL = ("--config", "emoji:debug", "--init-from", "", "--steps", "2")


@pytest.mark.parametrize(
    ("script", "arguments", "pictures"),
    [
        pytest.param("sample.py", ("red heart", "--out", "{out}"), 3, marks=pytest.mark.slow),
        pytest.param("train_emoji.py", (*SMALL, "--workdir", "{out}"), 2, marks=pytest.mark.slow),
        ("custom_dataset.py", (*SMALL, "--workdir", "{out}"), 2),
    ],
)
def test_example(script, arguments, pictures, tmp_path):
    out = tmp_path / "out"
    words = [word.format(out=out) for word in arguments]
    subprocess.run([sys.executable, ROOT / "examples" / script, *words], check=True, cwd=tmp_path)
    assert len(list(out.glob("*.png"))) == pictures
