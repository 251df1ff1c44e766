"""The commands of the documentation: blocks marked `bash exec` run as they stand, each in an empty folder.

Those marked `bash exec checkout` read results/ of a checkout, which is all that they see of it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT

PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^```bash exec(?: checkout)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Each block once, though several pages may show it.
BLOCKS = {
    block: f"{page.relative_to(ROOT)}:{page.read_text()[: match.start()].count(chr(10)) + 1}"
    for page in PAGES
    for match in BLOCK.finditer(page.read_text())
    for block in [match[1]]
}


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """A folder with `infinity-jax` and `python` of this environment and this checkout, for the shell's PATH."""
    folder = tmp_path_factory.mktemp("bin")
    for name, words in (("python", ""), ("infinity-jax", "-m infinity_jax.cli")):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS, ids=BLOCKS.values())
def test_commands_of_the_documentation_run(block, commands, tmp_path):
    environment = os.environ | {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    if "results/" in block:
        (tmp_path / "results").symlink_to(ROOT / "results")
    done = subprocess.run(
        ["bash", "-euc", block], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_readme_is_read_in_one_go():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_files_that_the_documentation_names_exist():
    """Paths like `infinity_jax/training/loop.py` or `training/loop.py` in the texts are those of the tree."""
    missing = []
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES, ROOT / "launch" / "README.md"):
        for name in re.findall(r"(?<![\w/.-])((?:[a-z_0-9]+/)+[a-z_0-9]+\.py)", page.read_text()):
            if not any((base / name).exists() for base in (ROOT, ROOT / "infinity_jax", Path(page).parent)):
                missing.append(f"{page.relative_to(ROOT)}: {name}")
    assert not missing, "\n".join(missing)
