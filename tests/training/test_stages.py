"""Progressive training: what each stage starts from, what is skipped, what is refused before anything is trained."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import paths, pictures, processes, toy_run
from helpers.paths import PROGRAMS
from programs import stage_run

from infinity_jax import config_files
from infinity_jax.checkpoints.run import Checkpointer
from infinity_jax.errors import UserError
from infinity_jax.training import run_log, stages

NAMES = list(stage_run.STEPS)


def outcome(workdir: Path, name: str):
    """A stage's last state, and its metrics without what depends on the clock."""
    reader = Checkpointer(workdir / name / "checkpoints", read_only=True)
    records = run_log.read_lines(workdir / name / "metrics.jsonl")
    lines = [{k: v for k, v in record.items() if k not in run_log.TIMING_KEYS} for record in records]
    return reader.restore(toy_run.fresh_state())[0], lines


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a[0], b[0])
    assert a[1] == b[1]


def replace_training(patch: pytest.MonkeyPatch, module) -> None:
    patch.setattr(stages, "run_config", module)
    patch.setattr(stages, "train_transformer", module)


@pytest.fixture
def toy(monkeypatch):
    replace_training(monkeypatch, stage_run.toy())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        replace_training(patch, stage_run.toy())
        stages.main(stage_run.config(), workdir)
    return workdir


def test_every_stage_starts_anew_from_the_averaged_weights_of_the_one_before(undisturbed, tmp_path):
    before = None
    for name, steps in stage_run.STEPS.items():
        start = "" if before is None else str(undisturbed / before)
        toy_run.run(tmp_path / name, steps, log_every=2, checkpoint_every=3, init_from=start)
        assert_same(outcome(tmp_path, name), outcome(undisturbed, name))
        before = name


def test_killed_in_the_second_stage_and_started_again_equals_undisturbed(undisturbed, tmp_path, toy):
    environment = {**os.environ, "PYTHONPATH": paths.PYTHONPATH}
    command = [sys.executable, stage_run.__file__, str(tmp_path), "second", "5"]
    killed = subprocess.run(command, env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (tmp_path / "second").is_dir() and not (tmp_path / "third").exists()
    stages.main(stage_run.config(), tmp_path)
    for name in NAMES:
        assert_same(outcome(tmp_path, name), outcome(undisturbed, name))


def test_a_stage_that_has_its_steps_is_not_started_again(undisturbed, monkeypatch):
    started = []
    module = stage_run.toy()
    module.main = lambda config, workdir: started.append((Path(workdir).name, config.train.steps))
    replace_training(monkeypatch, module)
    stages.main(stage_run.config(), undisturbed)
    stages.main(stage_run.config(third=9), undisturbed)
    assert started == [("third", 9)]


def test_a_signal_in_a_stages_last_step_does_not_begin_the_next(monkeypatch, tmp_path):
    def batches_of(name):
        def batches(first, rows_of):
            for step, batch in enumerate(toy_run.batches(first, rows_of), first + 1):
                if step == stage_run.STEPS[name]:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        return batches

    replace_training(monkeypatch, stage_run.toy(batches_of))
    for done in (1, 2, 3):
        with pytest.raises(SystemExit) as stopped:
            stages.main(stage_run.config(), tmp_path)
        assert stopped.value.code == 0
        assert sorted(folder.name for folder in tmp_path.iterdir()) == NAMES[:done]
    stages.main(stage_run.config(), tmp_path)


def test_a_stage_that_gets_more_steps_after_the_next_has_begun_is_refused(undisturbed, toy):
    with pytest.raises(
        UserError, match=r"stage second has begun.*stage first .* 4 of 6 .*first\.train\.steps=4"
    ):
        stages.main(stage_run.config(first=6), undisturbed)


def test_changes_of_a_finished_stage_are_named(undisturbed, toy, monkeypatch):
    said = []
    monkeypatch.setattr(
        stages, "logging", SimpleNamespace(info=lambda *_: 0, warning=lambda *text: said.append(text))
    )
    stages.main(stage_run.config(), undisturbed)
    assert not said
    config = stage_run.config()
    config.stages.second.data.source = "y"
    config.stages.second.train.log_every = 1
    stages.main(config, undisturbed)
    [(text, *values)] = said
    assert "data.source was 'x'. To train it again, remove" in text % tuple(values)


def test_only_the_first_stage_may_have_a_start_of_its_own(toy, tmp_path):
    config = stage_run.config()
    for section in (config, *(config.stages[name] for name in NAMES)):
        section.train.init_from = "bundled"
    starts = [config.train.init_from for config in stages.linked(config, tmp_path).values()]
    assert starts == ["bundled", str(tmp_path / "first"), str(tmp_path / "second")]
    config.stages.third.train.init_from = "elsewhere"
    with pytest.raises(
        UserError, match=r"stages\.third\.train\.init_from is 'elsewhere'.* only the first one, first"
    ):
        stages.main(config, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("px64.optim.schedule=straight", r"stage px64: unknown optim\.schedule 'straight'"),
        ("px64.train.steps=soon", r"'soon'.*same type"),
        ("px64.train.batch_size=0", "stage px64: train.batch_size is 0"),
        ("px64.data.scales=66px_of_64px", "stage px64: 64px has no scale of 66 pixels; there are: 8, 16"),
        ("px64.data.scales=96px", "stage px64: the tokenizer 'bundled' was trained for scales '64px'"),
        ("px64.data.source=folder:nowhere", "stage px64: .*nowhere"),
        ("px64.model.width=128", r"stage px64 has a model of other parameters than stage px32"),
        ("px64.tokenizer=nowhere", "stage px64: no checkpoint folder nowhere"),
    ],
)
def test_a_mistake_in_the_last_stage_is_told_before_anything_is_trained(
    change, message, tmp_path, monkeypatch
):
    monkeypatch.setenv("INFINITY_DATA", str(tmp_path / "data"))
    (tmp_path / "set").mkdir()
    for i in range(3):
        (tmp_path / "set" / f"{i}.png").write_bytes(pictures.flat(i, 8, 8))
    rows = ["file_name,caption", *(f"{i}.png,picture {i}" for i in range(3))]
    (tmp_path / "set" / "captions.csv").write_text("\n".join(rows) + "\n")
    changes = [f"--config.data.source=folder:{tmp_path / 'set'}", f"--config.stages.{change}"]
    with pytest.raises(UserError, match=message):
        config = config_files.load("configs/emoji_progressive.py:debug", changes, stages=True)
        stages.main(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_keys_are_changed_in_all_stages_or_in_one():
    changes = [
        "stages.px48.train.steps=7",
        "train.steps=5",
        "model.layers=1",
        "stages.px64.model.remat=block",
    ]
    config = config_files.load(
        "configs/emoji_progressive.py", [f"--config.{change}" for change in changes], stages=True
    )
    found = {
        name: (stage.train.steps, stage.model.layers, stage.model.remat)
        for name, stage in config.stages.items()
    }
    assert found == {"px32": (5, 1, "none"), "px48": (7, 1, "none"), "px64": (5, 1, "block")}
    assert list(config.stages) == list(found)
    with pytest.raises(UserError, match=r"did you mean config\.stages\.px48\.train\.steps"):
        config_files.load("configs/emoji_progressive.py", ["--config.stages.px48.train.stepz=7"], stages=True)


def test_stages_are_for_training_only():
    with pytest.raises(UserError, match=r"has the stages px32, px48, px64, which only infinity-jax train"):
        config_files.load("configs/emoji_progressive.py")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            {"last": {"train": {"stepz": 1}}},
            r"config\.stages\.last\.train\.stepz; did you mean config\.train\.steps",
        ),
        ({"64px": {}}, "stage name '64px'"),
        ({"../x": {}}, "stage name '../x'"),
    ],
)
def test_stages_that_cannot_be_are_refused(stage, message):
    with pytest.raises(UserError, match=message):
        config_files.with_stages(config_files.load("configs/emoji.py"), stage)


@pytest.mark.parametrize(
    ("argument", "one"), [("2b", "configs/t2i.py:2b"), ("2.2b,v5e_256", "configs/pods/v5e_256.py:2.2b")]
)
def test_the_papers_stages_are_those_of_the_configs_of_one_stage(argument, one):
    config = config_files.load(f"configs/t2i_progressive.py:{argument}", stages=True)
    stages_of = {name: stage.to_dict() for name, stage in config.stages.items()}
    budgets = {"px256": "0.06M", "px512": "0.25M", "px1024": "1M"}
    assert stages_of == {
        name: config_files.load(f"{one},{budget}").to_dict() for name, budget in budgets.items()
    }


def test_two_processes_go_through_the_stages_together_and_stop_together(tmp_path):
    """One of them gets the signal in the last step of the first stage; they agree on where to stop."""

    def run(*last: str) -> None:
        program, address = PROGRAMS / "process_stages.py", f"127.0.0.1:{processes.free_port()}"
        both = []
        for number in "01":
            options = ["--coordinator", address, "--processes", "2", "--process", number, "--platform", "cpu"]
            command = [
                sys.executable,
                program,
                *options,
                tmp_path,
                "10",
                "3000",
                *(last if number == "1" else ()),
            ]
            both.append(
                subprocess.Popen(command, env=processes.ENVIRONMENT, stderr=subprocess.PIPE, text=True)
            )
        said = [process.communicate()[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], said

    run("10")
    assert (tmp_path / "first" / "checkpoints" / "10").is_dir() and not (tmp_path / "third").exists()
