"""Sweeps and ablations: the grid, what a cell needs, resuming, failures."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import paths

from infinity_jax.cli.main import main
from infinity_jax.errors import UserError
from infinity_jax.tools.scaling import ablations, cells, grid, sweep, table

ROOT = paths.ROOT
GRID = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict(sort_keys=False)
    config.base = {base!r}
    config.changes = {changes!r}
    config.axes = ConfigDict(dict(
        size=("small: model.layers=1 model.width=64", "large: model.layers=2 model.width=64"),
        seed=("0: train.seed=0", "1: train.seed=1"),
    ), sort_keys=False)
    config.hardware = ConfigDict(dict(chip={chip!r}, count=1, utilisation=0.5))
    config.tokenizers = ()
    config.checkpoint = ""
    config.pictures = 0
    config.compare = "size"
    config.columns = ("validation_loss",)
    config.paper = ("1.0", "0.9")
    config.source = "Table 0"
    return config
"""
CHANGES = (
    "model.heads=2 train.steps=4 train.batch_size=2 train.log_every=1 train.checkpoint_every=1 "
    "train.evaluate_every=2"
)


@pytest.fixture
def file(tmp_path):
    """A function that writes a grid's config file."""

    def write(
        changes: str = CHANGES, chip: str = "v5e", base: str = str(ROOT / "configs" / "emoji.py")
    ) -> str:
        path = tmp_path / "grid.py"
        path.write_text(GRID.format(base=base, changes=changes, chip=chip))
        return str(path)

    return write


@pytest.fixture
def trainings(monkeypatch):
    """Names of the runs that were trained; training itself is a stand-in that leaves metrics behind."""
    done = []

    def train(config, workdir):
        done.append(workdir.parent.name)
        workdir.mkdir(parents=True, exist_ok=True)
        loss = 0.5 / config.model.layers + 0.01 * config.train.seed
        steps = range(1, config.train.steps + 1)
        line = {"loss": loss, "seconds_per_step": 0.5, "images_per_second": 4.0}
        (workdir / "metrics.jsonl").write_text("".join(json.dumps({"step": s} | line) + "\n" for s in steps))
        numbers = {
            "validation_loss": loss,
            "validation_bit_accuracy": 0.8,
            "validation_loss_per_scale": [0.3, loss],
        }
        (workdir / "evaluations.jsonl").write_text(json.dumps({"step": 4} | numbers) + "\n")

    monkeypatch.setattr(cells.train_transformer, "main", train)
    return done


def test_cells_are_all_combinations_and_change_only_what_they_say(file):
    _, every = grid.load(file())
    assert [cell.name for cell in every] == [
        f"size={size},seed={seed}" for size in ("small", "large") for seed in (0, 1)
    ]
    assert [(c.config.model.layers, c.config.train.seed) for c in every] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert all(c.config.train.steps == 4 and c.config.optim.b2 == 0.97 for c in every)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("train.stepz=4", "cell size=small,seed=0: unknown config key config.train.stepz; did you mean"),
        ("train.steps=many", "cell size=small,seed=0: .*cannot be 'many'"),
        ("model.width=65", "cell size=small,seed=0: "),
    ],
)
def test_a_mistake_in_a_cell_is_named_before_anything_runs(file, trainings, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        sweep.run(
            file(changes=f"{changes} model.heads=2"), ["--config.axes.size=('small',)"], tmp_path / "work"
        )
    assert not trainings and not (tmp_path / "work").exists()


def test_mistakes_of_the_grid_itself(file):
    with pytest.raises(
        UserError, match=r"label 'a/b' of 'a/b: train\.steps=1' becomes a part of a folder's name"
    ):
        grid.load(file(), ["--config.axes.size=('a/b: train.steps=1',)"])
    with pytest.raises(
        UserError, match=r"axes.size has the labels \['a', 'a'\]; give at least one, each once"
    ):
        grid.load(file(), ["--config.axes.size=('a', 'a: train.steps=1')"])
    with pytest.raises(UserError, match="compare 'colour' is no axis; the axes are size, seed"):
        grid.load(file(), ["--config.compare=colour"])
    with pytest.raises(UserError, match="names 'colour', which is no axis"):
        grid.load(file(base="configs/t2i.py:{colour}"))
    with pytest.raises(UserError, match=r"axes.size is the text 'abc'; give labels, like \('abc',\)"):
        grid.GridConfig("base", {"size": "abc"})
    with pytest.raises(UserError, match="pictures is 3; EffNet-KID takes 4 or more"):
        grid.load(file(), ["--config.pictures=3"])
    with pytest.raises(UserError, match=r"hardware\.utilisation is 0\.0; it must be a number above 0"):
        sweep.plan(file(), ["--config.hardware.utilisation=0"])
    with pytest.raises(UserError, match="an axis cannot be named 'steps'"):
        grid.GridConfig("base", {"steps": ("short", "long")}, compare="steps")


def test_a_grid_without_a_base_is_a_mistake(file):
    path = Path(file())
    path.write_text(path.read_text().replace("config.base =", "base ="))
    with pytest.raises(UserError, match="config lacks the key base; add it"):
        grid.load(str(path))


def test_labels_fill_the_base_config():
    _, every = grid.load(str(ROOT / "configs" / "sweeps" / "paper.py"))
    assert len(every) == 3 * 4 * 5
    widths = {cell.labels["size"]: cell.config.model.width for cell in every}
    assert widths == {"125m": 768, "361m": 1152, "940m": 1536, "2.2b": 2080, "4.7b": 2688}
    assert {cell.config.model.bits for cell in every} == {16, 24, 32, 64}
    assert {cell.config.train.batch_size for cell in every} == {4096}


def test_a_plan_says_what_a_cell_needs(file, capsys):
    assert main(["sweep", "--config", file(), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 4 + 1 and "v5e at 50% of its peak rate" in lines[-1]
    _, estimates = sweep.plan(file(), [])
    small, large = estimates[0], estimates[2]
    assert small.pictures == 8 and small.tokens == 8 * 130
    assert large.flops > small.flops and large.parameters > small.parameters
    assert small.seconds == pytest.approx(small.flops / (197e12 * 0.5))


def test_cells_that_only_draw_are_not_said_to_train(file):
    _, estimates = sweep.plan(file(), ["--config.checkpoint=bundled", "--config.pictures=8"])
    assert [e.flops + e.pictures + e.seconds for e in estimates] == [0] * 4
    known = {"name": "size=small,seed=1", "status": "planned", "size": "small", "seed": 1}
    assert estimates[1].row() == known


def test_what_does_not_fit_is_marked_and_not_run(file, trainings, tmp_path, capsys):
    huge = file(changes="model.heads=2 train.batch_size=4194304 train.steps=1")
    assert main(["sweep", "--config", huge, "--dry-run"]) == 3
    assert capsys.readouterr().out.count("DOES NOT FIT") == 4
    rows = sweep.run(huge, [], tmp_path / "work")
    assert [row["status"] for row in rows] == ["does not fit"] * 4 and not trainings


def test_the_same_command_again_runs_what_is_missing(file, trainings, tmp_path):
    first = sweep.run(file(), [], tmp_path / "work", only=[1, 2])
    assert [row["status"] for row in first] == ["planned", "done", "done", "planned"]
    rows = sweep.run(file(), [], tmp_path / "work")
    assert [row["status"] for row in rows] == ["done"] * 4
    assert sorted(trainings) == sorted(row["name"] for row in rows) and len(trainings) == 4
    (tmp_path / "work" / "runs.csv").unlink()
    sweep.run(file(), [], tmp_path / "work")
    assert len(trainings) == 4
    read = table.read(tmp_path / "work" / "runs.csv")
    assert [row["validation_loss"] for row in read] == [0.5, 0.51, 0.25, 0.26]
    assert read[0]["validation_curve"] == {4: 0.5} and read[0]["seconds"] == 2.0
    assert [row["size"] for row in read] == ["small", "small", "large", "large"]


def test_a_failed_cell_leaves_the_others_and_is_tried_again(file, trainings, tmp_path, monkeypatch, capsys):
    train = cells.train_transformer.main

    def refuse(config, workdir):
        if config.model.layers == 2 and config.train.seed == 0:
            raise UserError("loss is nan at step 3; try\na lower rate")
        train(config, workdir)

    command = ["sweep", "--config", file(), "--workdir", str(tmp_path / "work")]
    monkeypatch.setattr(cells.train_transformer, "main", refuse)
    assert main(command) == 2
    assert "1 of 4 cells failed, the first is size=large,seed=0: loss is nan" in capsys.readouterr().err
    rows = table.read(tmp_path / "work" / "runs.csv")
    assert [row["status"] for row in rows] == ["done", "done", "failed", "done"]
    assert rows[2]["error"] == "loss is nan at step 3; try a lower rate"
    monkeypatch.setattr(cells.train_transformer, "main", train)
    assert main(command) == 0
    assert {row["status"] for row in table.read(tmp_path / "work" / "runs.csv")} == {"done"}


def test_a_job_that_writes_the_table_keeps_the_failures_of_others(file, trainings, tmp_path, monkeypatch):
    train = cells.train_transformer.main
    monkeypatch.setattr(
        cells.train_transformer, "main", lambda *_: (_ for _ in ()).throw(UserError("no such data"))
    )
    with pytest.raises(UserError, match="1 of 4 cells failed"):
        sweep.run(file(), [], tmp_path / "work", only=[3])
    monkeypatch.setattr(cells.train_transformer, "main", train)
    rows = sweep.run(file(), [], tmp_path / "work", only=[0])
    assert [row["status"] for row in rows] == ["done", "planned", "planned", "failed"]
    assert rows[3]["error"] == "no such data"


def test_of_several_jobs_one_trains_the_tokenizer(file, trainings, tmp_path, monkeypatch):
    def train_tokenizer(config, workdir):
        with open(workdir.parent / ".t8.lock") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        trainings.append(workdir.name)

    monkeypatch.setattr(sweep.train_tokenizer, "main", train_tokenizer)
    text = f"--config.tokenizers=('t8: {ROOT / 'configs' / 'emoji_tokenizer.py'} model.bits=8',)"
    sweep.run(file(), [text], tmp_path / "work", only=[0])
    assert trainings == ["t8", "size=small,seed=0"]


def test_several_processes_draw_no_pictures(file, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="pictures is 8, and several processes cannot draw them"):
        sweep.run(file(), ["--config.pictures=8"], tmp_path / "work")


def test_a_cell_of_a_config_that_lacked_keys_resumes(file, trainings, tmp_path):
    """A config file names all fields of its sections now, and an older one did not."""
    grid_config, every = grid.load(file())
    record = cells._record(every[0], grid_config)
    older = {key: value for key, value in record.items() if key not in ("optim.drop_at", "sample.pruning")}
    assert len(older) == len(record) - 2
    here = cells.folder(tmp_path, every[0])
    here.mkdir(parents=True)
    (here / cells.CONFIG).write_text(json.dumps(older))
    cells.check_unchanged(tmp_path, every[0], grid_config)


def test_another_config_in_the_same_workdir_is_refused(file, trainings, tmp_path):
    sweep.run(file(), [], tmp_path / "work", only=[0])
    with pytest.raises(UserError, match=r"begun with train\.batch_size=2, and the config now says 3"):
        sweep.run(file(CHANGES.replace("batch_size=2", "batch_size=3")), [], tmp_path / "work")
    assert len(trainings) == 1


def test_what_is_not_there(file, tmp_path, capsys):
    assert main(["ablate", "nonsense", "--workdir", str(tmp_path / "work")]) == 2
    assert "no ablation 'nonsense'; there are: classifier, decoding, positions, " in capsys.readouterr().err
    with pytest.raises(UserError, match="there is no cell 4; this sweep has 0 to 3"):
        sweep.run(file(), [], tmp_path / "work", only=[4])
    assert main(["sweep", "--config", file()]) == 2


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "ablations").glob("*.py")), ids=lambda p: p.stem)
def test_every_ablation_can_be_planned(path):
    config, estimates = sweep.plan(str(path), ["--config.hardware.chip=v5e"])
    labels = config.axes[config.compare]
    assert len(estimates) == len(labels) * len(config.axes.seed)
    assert len(config.paper) <= len(labels) and config.columns
    assert grid.tokenizer_configs(config).keys() == {text.partition(":")[0] for text in config.tokenizers}


def test_an_ablation_writes_its_table(file, trainings, tmp_path):
    assert main(["ablate", file(), "--workdir", str(tmp_path / "work")]) == 0
    compared = json.loads((tmp_path / "work" / "table.json").read_text())
    assert [entry["validation_loss"]["values"] for entry in compared] == [[0.5, 0.51], [0.25, 0.26]]
    text = (tmp_path / "work" / "table.md").read_text()
    assert text.startswith("| size | runs | validation_loss | paper, Table 0 |")
    with pytest.raises(UserError, match="has no `compare` and `columns`"):
        ablations.main(file(), ["--config.compare="], tmp_path / "other")


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_to_the_same_table(file, tmp_path):
    """The real training on the bundled pictures, killed after the first checkpoint of the second cell."""
    path = file(f"{CHANGES} train.sample_every=0")

    def command(workdir: str) -> subprocess.Popen:
        only = [word for number in ("0", "2") for word in ("--cell", number)]
        arguments = ["sweep", "--config", path, "--workdir", str(tmp_path / workdir), *only]
        return subprocess.Popen([sys.executable, "-m", "infinity_jax.cli", *arguments], cwd=ROOT)

    assert command("whole").wait() == 0
    process = command("killed")
    second = tmp_path / "killed" / "cells" / "size=large,seed=0" / "run" / "checkpoints"
    while not any(second.glob("[0-9]*")) and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert command("killed").wait() == 0
    timing = ("seconds", "pictures_per_second")
    whole, killed = (
        [
            {k: v for k, v in row.items() if k not in timing}
            for row in table.read(tmp_path / name / "runs.csv")
        ]
        for name in ("whole", "killed")
    )
    assert whole == killed and [row["status"] for row in whole] == ["done", "planned", "done", "planned"]
