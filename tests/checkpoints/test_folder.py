"""Folders to share: damage is refused, nothing private is in them, nothing is written over what is read."""

import json
import os
import random
import shutil
import threading

import jax
import numpy as np
import pytest
from helpers.damage import MUTATIONS, copied, flip_bit
from helpers.systems import write_system

from infinity_jax.checkpoints import folder as disk
from infinity_jax.checkpoints import origin, pretrained
from infinity_jax.errors import UserError
from infinity_jax.files import checksums, paths
from infinity_jax.tools.convert.convert import to_torch

PARTS = ("tokenizer.safetensors", "transformer.safetensors")


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    folder = tmp_path_factory.mktemp("system") / "system"
    write_system(folder)
    return folder


def weights(folder):
    return [np.asarray(leaf) for name in PARTS for leaf in jax.tree.leaves(disk.read_arrays(folder / name))]


def test_any_damage_to_weights_is_refused_or_changes_nothing(system, tmp_path):
    draw, expected = random.Random(0), weights(system)
    for name in (*PARTS, "checksums.json"):
        for number in range(30):
            folder = copied(system, tmp_path / "damaged")
            mutate = flip_bit if number < 20 else draw.choice(list(MUTATIONS.values()))
            mutate(folder / name, draw)
            try:
                got = weights(folder)
            except (UserError, OSError) as error:
                assert isinstance(error, UserError) and str(folder) in str(error)
                continue
            assert name == "checksums.json" or number >= 20
            for one, other in zip(got, expected, strict=True):
                np.testing.assert_array_equal(one, other)


def test_a_damaged_file_is_named_with_the_remedy(system, tmp_path):
    folder = copied(system, tmp_path / "damaged")
    flip_bit(folder / PARTS[1], random.Random(1))
    with pytest.raises(
        UserError, match=rf"{folder / PARTS[1]} is damaged: it has other bytes .*export or conv"
    ):
        pretrained.load_model(folder)
    with pytest.raises(UserError, match=r"is damaged: it has other bytes"):
        to_torch(str(tmp_path / "a.pth"), str(folder), "transformer")
    pretrained.load_tokenizer(folder)  # the other part is whole
    (folder / "checksums.json").unlink()
    weights(folder)  # of an earlier version: unchecked


def test_the_bundled_weights_have_checksums():
    folder = paths.bundled_checkpoint()
    assert set(PARTS) <= checksums.read(folder).keys()
    checksums.check(folder, PARTS, "")


def test_parts_that_arrive_one_by_one_or_are_replaced_keep_their_checksums(system, tmp_path):
    folder = copied(system, tmp_path / "again")
    before = checksums.read(folder)
    tokenizer = pretrained.load_tokenizer(folder)
    pretrained.save_tokenizer(folder, tokenizer, "float16")
    after = checksums.read(folder)
    assert after[PARTS[1]] == before[PARTS[1]] and after[PARTS[0]] != before[PARTS[0]]
    weights(folder)


def test_files_may_be_read_by_whom_the_umask_says(system, tmp_path):
    before = os.umask(0o022)
    try:
        write_system(tmp_path / "out")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()} == {0o644}


def test_nothing_tells_where_things_lie_on_the_disk(system, tmp_path):
    noted = {
        "command": "infinity-jax train --config=/home/J/c.py '--config.x=folder:/home/J D/pics' --workdir ../w",
        "data": {"source": "records:/data/a b@2,records:~/c", "scales": "64px"},
        "paths": ["/home/J/x", "runs/mine", "https://example.org/a", 3, None],
    }
    assert origin.without_paths(noted) == {
        "command": "infinity-jax train --config=c.py --config.x=folder:pics --workdir w",
        "data": {"source": "records:a b@2,records:c", "scales": "64px"},
        "paths": ["x", "runs/mine", "https://example.org/a", 3, None],
    }


@pytest.mark.parametrize("out", ["system", "system/../system"])
def test_export_onto_what_it_reads_is_refused(system, tmp_path, out):
    copied(system, tmp_path / "system")
    with pytest.raises(UserError, match=r"--out .* is what this command reads .*; name another place"):
        pretrained.export(str(tmp_path / "system"), tmp_path / out)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"is a training's workdir .*; give another folder"):
        pretrained.export(str(tmp_path / "system"), run)
    assert [path.name for path in run.iterdir()] == ["checkpoints"]


@pytest.mark.parametrize(
    "name", ["transformer.safetensors", "tokenizer.safetensors", "config.pth/../config.json"]
)
def test_the_way_back_does_not_overwrite_the_checkpoint(system, tmp_path, name):
    folder = copied(system, tmp_path / "system")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(UserError):
        to_torch(str(folder / name), str(folder), "transformer")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_four_at_once_write_one_whole_folder(system, tmp_path):
    model, folder = pretrained.load_model(system), tmp_path / "out"
    threads = [threading.Thread(target=pretrained.save_model, args=(folder, model)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(weights(folder), weights(system), strict=True):
        np.testing.assert_array_equal(one, other)
    assert {file.name for file in folder.iterdir()} == {*PARTS, "config.json", "checksums.json"}


def test_what_a_kill_left_is_removed_by_the_next(system, tmp_path):
    folder = copied(system, tmp_path / "out")
    for name in (".tokenizer.safetensors.0f.unfinished", ".config.json.0f.unfinished"):
        (folder / name).write_text("half")
    shutil.copytree(folder, folder / ".text_encoder.0f.unfinished")
    write_system(folder)
    assert {file.name for file in folder.iterdir()} == {*PARTS, "config.json", "checksums.json"}


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff", "[" * 100_000])
def test_a_half_written_config_is_named(system, tmp_path, text):
    folder = copied(system, tmp_path / "out")
    (folder / "config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(
        UserError, match=r"config.json is damaged, .*; export or convert the checkpoint again"
    ) as error:
        pretrained.load_model(folder)
    assert "\n" not in str(error.value)
    assert json.loads((system / "config.json").read_text())
