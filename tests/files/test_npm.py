"""Packages of npm: fetched once, checked by hash, and what helps where they cannot be had."""

import base64
import hashlib
import os
import stat

import pytest

from infinity_jax.errors import UserError
from infinity_jax.files import npm
from infinity_jax.files.npm import NpmPackage

CONTENT = b"a package"
PACKAGE = NpmPackage("@scope/thing", "1.0.2", base64.b64encode(hashlib.sha512(CONTENT).digest()).decode())


@pytest.fixture
def client(tmp_path, monkeypatch):
    """A program called npm, which notes its arguments, and does what is written into it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(body: str):
        program = folder / "npm"
        program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n{body}\n')
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
        return tmp_path / "calls"

    return write


def test_a_package_is_fetched_once_and_runs_nothing(client, tmp_path):
    calls = client(f'for last; do :; done; printf "{CONTENT.decode()}" > "$last/scope-thing-1.0.2.tgz"')
    found = [npm.fetch(PACKAGE, tmp_path / "here") for _ in range(2)]
    assert (
        found[0] == found[1] == tmp_path / "here" / "scope-thing-1.0.2.tgz"
        and found[0].read_bytes() == CONTENT
    )
    (call,) = calls.read_text().splitlines()
    assert "pack" in call and "--ignore-scripts" in call and "@scope/thing@1.0.2" in call
    assert {path.name for path in found[0].parent.iterdir()} <= {found[0].name, ".npm.lock"}


def test_another_file_than_the_pinned_one_is_refused(client, tmp_path):
    client('for last; do :; done; printf "another" > "$last/scope-thing-1.0.2.tgz"')
    with pytest.raises(UserError, match=r"is not @scope/thing 1\.0\.2: its SHA-512 is .*remove it"):
        npm.fetch(PACKAGE, tmp_path / "here")


def test_an_unreachable_registry_is_named_with_the_remedy(client, tmp_path):
    client("echo 'npm error ENOTFOUND registry' >&2; exit 1")
    with pytest.raises(
        UserError, match=r"ENOTFOUND registry.*or put scope-thing-1\.0\.2\.tgz .*npm pack"
    ) as info:
        npm.fetch(PACKAGE, tmp_path / "here")
    assert "\n" not in str(info.value) and str(tmp_path / "here") in str(info.value)


def test_without_npm_a_file_that_is_put_there_will_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError, match=r"npm, which fetches @scope/thing@1\.0\.2, is not installed; install it"
    ):
        npm.fetch(PACKAGE, tmp_path / "here")
    (tmp_path / "here" / PACKAGE.file).write_bytes(CONTENT)
    assert npm.fetch(PACKAGE, tmp_path / "here").read_bytes() == CONTENT
