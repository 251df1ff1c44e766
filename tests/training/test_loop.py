import dataclasses
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import paths, toy_run

from infinity_jax.checkpoints.run import Checkpointer
from infinity_jax.errors import UserError
from infinity_jax.runtime import global_batch
from infinity_jax.training import config as train_config
from infinity_jax.training import loop as training_loop
from infinity_jax.training import run_log, start


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, toy_run.run(workdir)


def test_metrics_have_a_line_per_logged_step(undisturbed):
    records = toy_run.lines(undisturbed[0])
    assert [record["step"] for record in records] == [3, 6, 9, 12, 15, 18, 20]
    assert all(len(record["loss_per_scale"]) == 3 for record in records)
    assert records[-1]["loss"] < records[0]["loss"] / 2
    assert list((undisturbed[0] / "tensorboard").iterdir())


def test_stopped_and_started_again_equals_undisturbed(undisturbed, tmp_path):
    toy_run.run(tmp_path, 10)
    state = toy_run.run(tmp_path, 20)
    assert_equal(state, undisturbed[1])
    assert toy_run.lines(tmp_path) == toy_run.lines(undisturbed[0])


def test_gradients_that_wait_for_their_update_are_saved_too(tmp_path, monkeypatch):
    """Ten steps are two and a half updates of four."""
    monkeypatch.setattr(toy_run, "OPTIM", dataclasses.replace(toy_run.OPTIM, accumulate=4))
    jax.clear_caches()  # the toy's functions read this name
    whole = toy_run.run(tmp_path / "whole")
    toy_run.run(tmp_path / "parts", 10)
    assert_equal(toy_run.run(tmp_path / "parts", 20), whole)
    assert int(whole.opt_state.updates) == 5
    toy_run.run(tmp_path / "other", 10)
    monkeypatch.undo()
    jax.clear_caches()
    with pytest.raises(UserError, match="of another model: opt_state"):
        toy_run.run(tmp_path / "other", 20)


def test_killed_and_started_again_equals_undisturbed(undisturbed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": paths.PYTHONPATH}
    command = [sys.executable, toy_run.__file__, str(tmp_path), "20", "13"]
    killed = subprocess.run(command, env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')  # as if it had been killed while writing
    state = toy_run.run(tmp_path, 20)
    assert_equal(state, undisturbed[1])
    assert toy_run.lines(tmp_path) == toy_run.lines(undisturbed[0])


def test_checkpoint_says_where_the_data_stood(undisturbed):
    reader = Checkpointer(undisturbed[0] / "checkpoints", read_only=True)
    state, data = reader.restore(toy_run.fresh_state(), 15)
    assert data == {"seed": 0, "next_step": 15, "examples": 120} and int(state.step) == 15
    assert reader.config() == toy_run.CONFIG


def test_finished_run_is_left_alone(undisturbed):
    before = (undisturbed[0] / "metrics.jsonl").read_text()
    assert_equal(toy_run.run(undisturbed[0]), undisturbed[1])
    assert (undisturbed[0] / "metrics.jsonl").read_text() == before


class SilentCheckpointer(Checkpointer):
    """Has and writes no checkpoints; tells `events` of each."""

    def __init__(self, events: list):
        self.events = events

    def latest_step(self) -> int | None:
        return None

    def save(self, step, state, data, config, metrics=None) -> None:
        self.events.append(("save", step))

    def check(self) -> None:
        pass

    def wait(self) -> None:
        pass


class SilentWriter(run_log.MetricsWriter):
    """Tells `events` of each line instead of writing it."""

    def __init__(self, events: list):
        self.events = events

    def write(self, step, values, file="metrics.jsonl") -> None:
        self.events.append(("log", step))


def loop_with(train, step_fn, batches, events: list, checkpointer=None) -> training_loop._Loop:
    data = training_loop.Data(batches, lambda step: step * train.batch_size)
    checkpointer, writer = checkpointer or SilentCheckpointer(events), SilentWriter(events)
    return training_loop._Loop(train, step_fn, toy_run.layout(), data, checkpointer, writer, (), {})


def test_order_within_the_loop(monkeypatch):
    """save -> next(batch), put on the devices -> step -> log the metrics of the previous logged step.

    So a batch goes to the device, and its step is queued, before anything waits for the step before it.
    """
    events = []
    put = global_batch.put

    def put_and_tell(batch, *where):
        events.append(("put", int(batch["x"][0])))
        return put(batch, *where)

    monkeypatch.setattr(global_batch, "put", put_and_tell)

    def step_fn(state, batch, seed_key):
        taken = int(state.step) + 1
        events.append(("step", taken))
        return state.replace(step=np.int32(taken)), {"loss": np.float32(1)}

    def batches(first, rows_of):
        for step in range(first, 10):
            events.append(("batch", step + 1))
            yield {"x": np.full(1, step + 1)}

    train = train_config.TrainConfig(steps=4, batch_size=1, log_every=1, checkpoint_every=3)
    loop_with(train, step_fn, batches, events).run(toy_run.fresh_state())
    assert events == [
        *[("batch", 1), ("put", 1), ("step", 1)],
        *[("batch", 2), ("put", 2), ("step", 2), ("log", 1)],
        # A checkpoint promises the lines up to its step, so here the loop waits.
        *[("batch", 3), ("put", 3), ("step", 3), ("log", 2), ("log", 3), ("save", 3)],
        *[("batch", 4), ("put", 4), ("step", 4), ("log", 4), ("save", 4)],
    ]


def test_numbers_that_slip_into_the_step_from_the_host_are_refused():
    add = jax.jit(lambda step, number: step + number)

    def slipping(state, batch, seed_key):
        return state.replace(step=add(state.step, 1)), {"loss": jnp.float32(0)}

    train = train_config.TrainConfig(steps=1, batch_size=1)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        loop_with(train, slipping, toy_run.batches, []).run(toy_run.fresh_state())


def test_hooks_run_on_their_steps_and_their_numbers_are_kept(tmp_path):
    seen = []

    def evaluate(step, state):
        seen.append((step, int(state.step)))
        return {"validation_loss": float(step)}

    hook = training_loop.Hook(4, evaluate)
    never = training_loop.Hook(0, lambda step, state: pytest.fail("a hook that is off"))
    toy_run.run(tmp_path, 10, hooks=(hook, never))
    assert seen == [(4, 4), (8, 8), (10, 10)]
    written = run_log.read_lines(tmp_path / "evaluations.jsonl")
    assert [(line["step"], line["validation_loss"]) for line in written] == [(4, 4.0), (8, 8.0), (10, 10.0)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_run_goes_on_unchanged(undisturbed, tmp_path, number, code):
    def batches(first, rows_of):
        for step, batch in enumerate(toy_run.batches(first, rows_of), first):
            if step == 7:
                os.kill(os.getpid(), number)
            yield batch

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        toy_run.run(tmp_path, batches=batches)
    assert stopped.value.code == code and signal.getsignal(number) == before
    assert Checkpointer(tmp_path / "checkpoints", read_only=True).latest_step() == 8
    assert_equal(toy_run.run(tmp_path), undisturbed[1])
    assert toy_run.lines(tmp_path) == toy_run.lines(undisturbed[0])


def started(folder: Path, train: train_config.TrainConfig):
    """The state that a run begins with."""
    checkpointer = Checkpointer(folder)
    step = toy_run.train_step()
    state = start.first_state(checkpointer, train, step, toy_run.load_params, lambda step: 8 * step)
    checkpointer.close()
    return state


def test_start_order(undisturbed, tmp_path):
    source = str(undisturbed[0])
    # init_from: the averaged parameters, a fresh optimiser, step 0.
    state = started(tmp_path / "init", toy_run.config(init_from=source))
    assert int(state.step) == 0
    assert_equal(state.params, undisturbed[1].ema_params)
    # restore_from comes before init_from and takes everything.
    both = toy_run.config(30, init_from=source, restore_from=source)
    assert_equal(started(tmp_path / "restore", both), undisturbed[1])
    # A checkpoint of its own comes before both.
    toy_run.run(tmp_path / "own", 2)
    assert int(started(tmp_path / "own/checkpoints", both).step) == 2


def test_training_goes_on_from_other_parameters(undisturbed, tmp_path):
    state = toy_run.run(tmp_path, 5, init_from=str(undisturbed[0]), log_every=1)
    assert int(state.step) == 5
    assert toy_run.lines(tmp_path)[0]["loss"] < 1 < toy_run.lines(undisturbed[0])[0]["loss"]


class FailedCheckpointer(SilentCheckpointer):
    """Its second save fails in the background."""

    def check(self) -> None:
        if self.events == [("save", 2), ("save", 4)]:
            raise UserError("could not save the checkpoint of step 4")


def test_a_failed_background_save_ends_the_run_at_the_next_step():
    events, taken = [], []

    def step_fn(state, batch, seed_key):
        taken.append(len(taken) + 1)
        return state, {"loss": np.float32(1)}

    train = train_config.TrainConfig(steps=20, batch_size=8, checkpoint_every=2, log_every=100)
    loop = loop_with(train, step_fn, toy_run.batches, events, FailedCheckpointer(events))
    with pytest.raises(UserError, match="step 4"):
        loop.run(toy_run.fresh_state())
    assert taken[-1] == 5


def test_the_best_is_kept_by_a_number_of_the_evaluation(tmp_path):
    def evaluate(step, state):
        return {"validation_loss": abs(step - 4.0)}

    every = {"evaluate_every": 2, "checkpoint_every": 2, "keep_checkpoints": 1}
    hook = training_loop.Hook(2, evaluate)
    toy_run.run(tmp_path, 10, hooks=(hook,), keep_best="validation_loss", **every)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"4", "10"}
    with pytest.raises(UserError, match="keep_best 'psnr' is not evaluated; use one of validation_loss"):
        toy_run.run(tmp_path / "other", 10, hooks=(hook,), keep_best="psnr", **every)


def test_another_seed_is_refused(undisturbed):
    with pytest.raises(UserError, match=r"train\.seed 0, this config 1"):
        toy_run.run(undisturbed[0], 30, seed=1)


def test_metrics_that_are_not_numbers_of_json_become_null(tmp_path):
    writer = run_log.MetricsWriter(tmp_path, 0)
    writer.write(1, {"loss": jnp.float32(0.5), "per_scale": np.array([1.0, np.nan]), "n": np.int32(3)})
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "loss": 0.5, "per_scale": [1.0, None], "n": 3}


def test_after_its_minutes_a_run_is_saved_and_goes_on_as_if_it_had_not_stopped(undisturbed, tmp_path):
    drawn = []
    hook = training_loop.Hook(20, lambda step, state: drawn.append(step))
    with pytest.raises(SystemExit) as stopped:
        toy_run.run(tmp_path, minutes=1e-9, hooks=[hook])
    assert stopped.value.code == 0 and drawn == [1]
    assert Checkpointer(tmp_path / "checkpoints", read_only=True).latest_step() == 1
    assert_equal(toy_run.run(tmp_path, minutes=10.0), undisturbed[1])


def test_a_run_foresees_where_its_minutes_end(tmp_path, caplog):
    logging.getLogger("absl").propagate = True
    with pytest.raises(SystemExit):
        toy_run.run(tmp_path, 10**7, minutes=1 / 60, checkpoint_every=10**7)
    assert re.search(r"0\.0166667 minutes end this run near step \d+ of 10000000", caplog.text)


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 4, "lo',
        b"\xff\xfe\x00garbage",
        b"5",
        b"null",
        b'{"loss": 1}',
        b'{"step": "x"}',
        b"[" * 99_999,
    ],
)
def test_damaged_lines_of_metrics_are_left_out_and_counted(tmp_path, line, caplog):
    whole = [b'{"step": 1, "loss": 2.0}', b'{"step": 2, "loss": 1.0}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([whole[0], line, whole[1], line]))
    with caplog.at_level("WARNING"):
        run_log.MetricsWriter(tmp_path, start_step=1).close()
    assert "metrics.jsonl: 2 damaged lines are left out" in caplog.text
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole[0] + b"\n"
