"""A checkpoint that is damaged is refused with the file and the remedy; nothing is ever read from it."""

import contextlib
import json
import os
import random
import shutil

import jax
import numpy as np
import pytest
from helpers.damage import MUTATIONS, copied, files_of, flip_bit
from helpers.small_state import CONFIG, DATA, assert_equal, make_state

from infinity_jax.checkpoints.run import Checkpointer
from infinity_jax.errors import UserError
from infinity_jax.files import checksums


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """Checkpoints of steps 5 and 7."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    with contextlib.closing(Checkpointer(folder)) as checkpointer:
        for step in (5, 7):
            checkpointer.save(step, make_state(), DATA, CONFIG, {"loss": 1.0})
    return folder


def read(folder):
    """What all three ways of reading give of the newest checkpoint."""
    with contextlib.closing(Checkpointer(folder, read_only=True)) as reader:
        state, data = reader.restore(jax.eval_shape(make_state))
        return state, data, reader.config(), reader.restore_params(jax.eval_shape(make_state).params)


def refused_or_the_same(folder, expected):
    """The message of the refusal, "" where what is read is what was written."""
    try:
        got = read(folder)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    assert_equal(got[0], expected[0])
    assert_equal(got[3], expected[3])
    assert got[1:3] == expected[1:3]
    return ""


def test_every_file_has_its_checksum(two_steps):
    folder = two_steps / "7"
    known = checksums.read(folder)
    files = {path.relative_to(folder).as_posix() for path in files_of(folder)}
    assert files - known.keys() == {"checksums.json", "_CHECKPOINT_METADATA", "commit_success.txt"}
    assert known == checksums.compute(folder, known)


def test_a_flipped_bit_is_refused_with_its_file_and_the_newest_whole_checkpoint(two_steps, tmp_path):
    draw, expected = random.Random(0), read(two_steps)
    names = sorted(checksums.read(two_steps / "7"))
    for name in names:
        folder = copied(two_steps, tmp_path / "damaged")
        where = flip_bit(folder / "7" / name, draw)
        message = refused_or_the_same(folder, expected)
        if name.startswith(("config/", "data/", "state/")):
            assert f"{folder / '7' / name} is damaged" in message, where
            assert f"that of step 5: to go on from there remove {folder / '7'} and run the same" in message
    for name in ("checksums.json", "_CHECKPOINT_METADATA", "commit_success.txt"):
        folder = copied(two_steps, tmp_path / "damaged")
        flip_bit(folder / "7" / name, draw)
        refused_or_the_same(folder, expected)


def test_the_remedy_works_and_passes_over_others_that_are_damaged(two_steps, tmp_path):
    folder = copied(two_steps, tmp_path / "damaged")
    shutil.copytree(folder / "5", folder / "6")
    for step in ("6", "7"):
        flip_bit(max(files_of(folder / step / "state"), key=lambda f: f.stat().st_size), random.Random(0))
    with pytest.raises(UserError, match=r"that of step 5"):
        read(folder)
    shutil.rmtree(folder / "7")
    with pytest.raises(UserError, match=r"6/state/.* is damaged.*that of step 5"):
        read(folder)
    shutil.rmtree(folder / "6")
    assert read(folder)[1] == DATA
    shutil.rmtree(folder / "5" / "data")
    with pytest.raises(UserError, match=rf"5/data/.* is damaged.*no earlier one.*remove {folder} to begin"):
        read(folder)


def test_a_checkpoint_without_checksums_is_read(two_steps, tmp_path):
    folder = copied(two_steps, tmp_path / "old")
    (folder / "7" / "checksums.json").unlink()
    assert refused_or_the_same(folder, read(two_steps)) == ""


def _each(change):
    """Does `change` to the files of the newest checkpoint that match a pattern."""

    def damage(folder, pattern):
        for path in sorted((folder / "7").glob(pattern)):
            change(path)

    return damage


FORMS = {
    **{
        f"{name} {pattern}": (
            lambda folder, n=name, p=pattern: _each(lambda f: MUTATIONS[n](f, DRAW))(folder, p)
        )
        for name in ("removed", "emptied", "truncated", "garbage", "other json", "a folder", "nested json")
        for pattern in (
            "_CHECKPOINT_METADATA",
            "state/_METADATA",
            "state/_sharding",
            "state/manifest.ocdbt",
            "state/d/*",
            "state/array_metadatas/*",
            "data/metadata",
            "config/metadata",
            "metrics/metrics",
        )
    },
    **{
        f"no {item}": (lambda folder, i=item: shutil.rmtree(folder / "7" / i))
        for item in ("state", "data", "config")
    },
    "empty step": lambda folder: (shutil.rmtree(folder / "7"), (folder / "7").mkdir()),
    "a file for a step": lambda folder: (shutil.rmtree(folder / "7"), (folder / "7").write_text("x")),
    "an item is a file": lambda folder: (
        shutil.rmtree(folder / "7/state"),
        (folder / "7/state").write_text("x"),
    ),
    "a link to nowhere": lambda folder: (shutil.rmtree(folder / "7"), (folder / "7").symlink_to("none")),
    "step of another name": lambda folder: (folder / "7").rename(folder / "07"),
}
DRAW = random.Random(1)


@pytest.mark.parametrize("sums", ["with checksums", "without checksums"])
def test_broken_checkpoints_end_in_one_line(two_steps, tmp_path, sums):
    """Also those of earlier versions, which have no checksums."""
    expected = read(two_steps)
    accepted = []
    for name, damage in FORMS.items():
        folder = copied(two_steps, tmp_path / "damaged")
        if sums == "without checksums":
            (folder / "7" / "checksums.json").unlink()
        damage(folder)
        try:
            message = refused_or_the_same(folder, expected)
        except AssertionError as error:
            raise AssertionError(name) from error
        if message:
            assert str(folder) in message and ("remove" in message or "checkpoint" in message), (
                name,
                message,
            )
        else:
            accepted.append(name)
    # What is read does not stand in these.
    harmless = (
        "_CHECKPOINT_METADATA",
        "_sharding",
        "array_metadatas",
        "metrics/metrics",
        "a file for",
        "link",
        "another",
    )
    assert [name for name in accepted if not any(word in name for word in harmless)] == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_checkpoint_that_may_not_be_read_is_named(two_steps, tmp_path):
    folder = copied(two_steps, tmp_path / "damaged")
    (folder / "7" / "data" / "metadata").chmod(0)
    with pytest.raises(UserError, match=r"7/data/metadata .*Permission denied"):
        read(folder)


def test_damaged_checksums_are_named(tmp_path):
    (tmp_path / "a").write_text("a")
    with checksums.replacing(tmp_path, "a"):
        pass
    checksums.check(tmp_path, ["a", "b"], "")
    content = json.loads((tmp_path / "checksums.json").read_text())
    content["xxh3"]["a"][1] = "0" * 16
    (tmp_path / "checksums.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"checksums.json is damaged.*restore it, or remove it"):
        checksums.check(tmp_path, ["a"], "")


def test_large_files_are_hashed_in_parts(tmp_path, monkeypatch):
    content = np.random.default_rng(0).bytes(300_000)
    (tmp_path / "a").write_bytes(content)
    whole = checksums.of_file(tmp_path / "a")
    monkeypatch.setattr(checksums, "_BLOCK", 1 << 16)
    assert checksums.of_file(tmp_path / "a") == whole
    (tmp_path / "b").write_bytes(b"")
    assert checksums.of_file(tmp_path / "b")[0] == 0
