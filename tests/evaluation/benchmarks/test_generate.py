"""`infinity-jax generate`: files, seeds, shards, runs that were killed, and the card."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import prompts as field_prompts
from helpers.paths import PROGRAMS
from helpers.systems import write_system
from PIL import Image

import infinity_jax
from infinity_jax.cli.main import main
from infinity_jax.errors import UserError
from infinity_jax.evaluation.benchmarks import card, generate, layouts
from infinity_jax.evaluation.benchmarks.layouts import BENCHMARKS
from infinity_jax.files import pictures as picture_files
from infinity_jax.sampling.request import SampleRequest, SystemOptions
from infinity_jax.text.rewriting import Rewriter

TEXT_LENGTH, SIDE = 64, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("system")
    write_system(folder, TEXT_LENGTH)
    return folder


@pytest.fixture(scope="module")
def system(folder):
    return infinity_jax.InfinityPipeline.from_pretrained(folder)


@pytest.fixture
def run(system, folder, monkeypatch, tmp_path):
    """`generate.main` of the system that is loaded already, with the small prompts of a benchmark."""
    monkeypatch.setattr(infinity_jax.InfinityPipeline, "from_pretrained", lambda *_: system)

    def generate_(name, out, seed=0, shard=(0, 1), rewriter=None, **settings):
        prompts = layouts.read(BENCHMARKS[name], field_prompts.write(name, tmp_path / f"prompts-{name}"))
        plan = generate.Plan(seed, batch=4, shard=shard)
        generate.main(prompts, out, plan, SystemOptions(str(folder)), settings, rewriter)
        return json.loads((out / "card.json").read_text())

    return generate_


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def pictures(out: Path) -> list[str]:
    return sorted(name for name in contents(out) if name.endswith((".png", ".jpg")))


@pytest.mark.long
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_its_files(name, run, tmp_path):
    out = tmp_path / "new" / "out"
    found = run(name, out)
    assert pictures(out) == sorted(field_prompts.FILES[name])
    side = 2 * SIDE if name == "dpg" else SIDE
    for file in field_prompts.FILES[name]:
        with Image.open(out / file) as image:
            image.load()
            assert image.size == (side, side) and image.mode == "RGB"
    number = 8 if name == "dpg" else len(field_prompts.FILES[name])
    sizes = {key: found["pictures"][key] for key in ("number", "height", "width")}
    assert sizes == {"number": number, "height": SIDE, "width": SIDE} and found["benchmark"] == name
    if name == "geneval":
        lines = [json.loads((out / f"{i:05d}/metadata.jsonl").read_text()) for i in range(3)]
        assert lines == field_prompts.GENEVAL
    else:
        others = set(contents(out)) - set(pictures(out))
        assert others == {"card.json"}, "an evaluator may take any other file for its own"


def test_seeds_depend_on_the_numbers_of_prompt_and_picture(run, system, tmp_path):
    run("geneval", tmp_path / "g", seed=100, cfg=(3.0,))
    settings = system.settings.changed(cfg=3.0)
    alone = [x for _, x in system.stream(SampleRequest(["a red car"], [100 + 4 * 2 + 1], batch=4), settings)]
    file = tmp_path / "g" / "00002" / "samples" / "0001.png"
    np.testing.assert_array_equal(np.asarray(Image.open(file)), alone[0][0])
    note = picture_files.read_metadata(file)
    assert note is not None and note["seeds"] == [109] and note["cfg"] == 3.0 and note["drawn"] == "a red car"


def test_a_grid_is_read_row_by_row(run, system, tmp_path):
    run("dpg", tmp_path / "d")
    grid = np.asarray(Image.open(tmp_path / "d" / "images" / "COCOval2014000000001.png"))
    (parts,) = [x for _, x in system.stream(SampleRequest(["a blue cat"] * 4, [4, 5, 6, 7], batch=4))]
    n = SIDE
    quarters = [grid[:n, :n], grid[:n, n:], grid[n:, :n], grid[n:, n:]]
    np.testing.assert_array_equal(quarters, parts)


def test_shards_together_are_the_whole_byte_for_byte(run, tmp_path):
    run("geneval", tmp_path / "whole")
    for i in (2, 0, 1):
        run("geneval", tmp_path / "parts", shard=(i, 3))
    whole, parts = (contents(tmp_path / name) for name in ("whole", "parts"))
    cards = [json.loads(found.pop("card.json")) for found in (whole, parts)]
    assert whole == parts
    for found in cards:
        found.pop("evaluator")  # names the folder
    assert cards[0] == cards[1]


def test_only_what_is_missing_or_broken_is_drawn(run, tmp_path):
    for name in ("hpsv2", "image_reward"):
        out = tmp_path / name
        run(name, out)
        before = contents(out)
        files = [out / file for file in field_prompts.FILES[name]]
        files[0].unlink()
        files[1].write_bytes(files[1].read_bytes()[:-5])
        files[2].write_bytes(files[3].read_bytes())  # another picture
        for file in files[1:]:
            os.utime(file, (1, 1))
        run(name, out)
        assert contents(out) == before
        kept = [int(file.stat().st_mtime) == 1 for file in files]
        assert kept == [False] * 3 + [True] * (len(files) - 3)


@pytest.mark.long
def test_a_killed_run_goes_on(run, folder, tmp_path):
    run("image_reward", tmp_path / "whole")
    out, prompts = tmp_path / "killed", tmp_path / "prompts-image_reward" / "image_reward.json"
    words = ["generate", "--benchmark", "image_reward", "--prompts", prompts, "--checkpoint", folder]
    command = [sys.executable, PROGRAMS / "killed_generation.py", "7", *words]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "INFINITY_DATA": str(tmp_path)}
    done = subprocess.run([*map(str, command), "--out", str(out), "--batch", "4"], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert 4 <= len(pictures(out)) < 20
    assert any(name.endswith(".unfinished") for name in contents(out))
    run("image_reward", out)
    whole, resumed = (contents(tmp_path / name) for name in ("whole", "killed"))
    for found in (whole, resumed):
        found.pop("card.json")
    assert resumed == whole


@pytest.mark.parametrize(
    "options, name",
    [
        ({"cfg": (5.0,)}, "cfg"),
        ({"seed": 3}, "seed"),
        ({"tau": (0.5, 1.0, 1.0, 1.0)}, "tau"),
        ({"top_p": 0.9}, "top_p"),
    ],
)
def test_other_settings_are_refused(run, tmp_path, options, name):
    run("mjhq", tmp_path / "m")
    before = contents(tmp_path / "m")
    with pytest.raises(UserError, match=rf"made with {name} = .*name another folder"):
        run("mjhq", tmp_path / "m", **options)
    assert contents(tmp_path / "m") == before


def test_other_prompts_weights_and_benchmarks_are_refused(run, folder, system, tmp_path, monkeypatch):
    run("coco", tmp_path / "c")
    with pytest.raises(UserError, match="made with benchmark"):
        run("mjhq", tmp_path / "c")
    monkeypatch.setattr(card, "checkpoint_identity", lambda _: {"sha256": "another"})
    with pytest.raises(UserError, match=r"made with checkpoint\.sha256"):
        run("coco", tmp_path / "c")
    monkeypatch.undo()
    file = field_prompts.write("coco", tmp_path / "other")
    file.write_text(file.read_text().replace("food", "cake"))
    monkeypatch.setattr(infinity_jax.InfinityPipeline, "from_pretrained", lambda *_: system)
    with pytest.raises(UserError, match=r"made with prompts\.sha256"):
        prompts = layouts.read(BENCHMARKS["coco"], file)
        generate.main(prompts, tmp_path / "c", generate.Plan(batch=4), SystemOptions(str(folder)))


def test_folders_of_something_else_are_refused(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds files but no card\.json"):
        run("mjhq", tmp_path / "full")
    run("mjhq", tmp_path / "m")
    (tmp_path / "m" / "card.json").write_text("{")
    with pytest.raises(UserError, match=r"card\.json is damaged"):
        run("mjhq", tmp_path / "m")


def test_impossible_settings_leave_nothing(run, tmp_path):
    with pytest.raises(UserError, match="cfg"):
        run("mjhq", tmp_path / "m", cfg=(1.0, 2.0))
    with pytest.raises(UserError, match="seed"):
        run("mjhq", tmp_path / "m", seed=2**32 - 1)
    assert not (tmp_path / "m").exists()


class Longer(Rewriter):
    """Makes prompts longer without asking anybody, if it is not broken."""

    broken = False

    def __call__(self, prompts):
        if self.broken:
            raise UserError("cannot rewrite the prompt 'a dog'")
        return [f"{prompt}, in the sun" for prompt in prompts]


def test_rewritten_prompts_are_drawn_and_said(run, system, tmp_path):
    rewriter = Longer("http://127.0.0.1:9/v1?key=secret", "m")
    found = run("mjhq", tmp_path / "m", rewriter=rewriter)
    assert found["rewriting"] == rewriter.describe() and "secret" not in json.dumps(found)
    file = tmp_path / "m" / "food" / "c3.png"
    note = picture_files.read_metadata(file)
    assert note is not None and (note["prompt"], note["drawn"]) == ("a cake", "a cake, in the sun")
    alone = [x for _, x in system.stream(SampleRequest(["a cake, in the sun"], [1], batch=4))]
    np.testing.assert_array_equal(np.asarray(Image.open(file)), alone[0][0])
    with pytest.raises(UserError, match="made with rewriting"):
        run("mjhq", tmp_path / "m")
    before = contents(tmp_path / "m")
    rewriter.broken = True
    with pytest.raises(UserError, match="'a dog'"):
        run("mjhq", tmp_path / "m", rewriter=rewriter)
    assert contents(tmp_path / "m") == before


def test_command_line(monkeypatch, tmp_path, capsys):
    got: dict = {}
    monkeypatch.setattr("infinity_jax.cli.main._prepare_process", lambda: None)
    names = ("prompts", "out", "plan", "system", "settings", "rewriter")
    monkeypatch.setattr(generate, "main", lambda *values: got.update(zip(names, values, strict=True)))
    path = field_prompts.write("geneval", tmp_path)
    words = ["generate", "--benchmark", "geneval", "--prompts", str(path), "--out", "o"]
    assert main([*words, "--shard", "7/8", "--limit", "2", "--cfg", "4", "--seed", "3"]) == 0
    assert len(got["prompts"].prompts) == 2 and got["out"] == "o" and got["rewriter"] is None
    assert got["plan"] == generate.Plan(seed=3, shard=(7, 8)) and got["settings"] == {"cfg": (4.0,)}
    assert got["system"] == SystemOptions("bundled")
    for shard in ("8/8", "1", "a/b", "-1/2"):
        with pytest.raises(SystemExit, match="2"):
            main([*words, "--shard", shard])
    assert "is no shard I/N" in capsys.readouterr().err
    path.write_text("{")
    assert main(words) == 2
    assert "evaluation_metadata.jsonl, line 1: no valid JSON" in capsys.readouterr().err
