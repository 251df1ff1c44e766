"""Real processes on the loopback: one run, killed and preempted, gives the numbers of an undisturbed one."""

import json
import re
import signal
import subprocess

import numpy as np
import pytest
from helpers.processes import Run, lines

STEPS, MESH, OTHER_MESH = 12, "data=2,fsdp=4", "data=1,fsdp=2,tensor=2"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(workdir, exit codes, stderr) of every run that needs no other before it."""
    folder = tmp_path_factory.mktemp("runs")
    cases = {
        "one": dict(count=1, devices=8, mesh=MESH),
        "two": dict(count=2, devices=4, mesh=MESH),
        # Every process has a part of the work on all pictures.
        "tensor": dict(count=2, devices=2, mesh="tensor=4"),
        "killed": dict(count=2, devices=4, mesh=MESH, last=("--at", "6", "kill-in-save")),
        "full": dict(count=2, devices=1, mesh="fsdp=2", steps=10**6, last=("--at", "3", "full")),
        "preempted": dict(
            count=2, devices=1, mesh="fsdp=2", steps=10**6, last=("--at", "5", "term"), checkpoint_every=10**6
        ),
    }
    # The survivors of those that end badly wait for heartbeats meanwhile.
    running = {name: Run(folder / name, **{"steps": STEPS, **case}) for name, case in cases.items()}
    return {name: (folder / name, *run.finish()) for name, run in running.items()}


@pytest.mark.long
@pytest.mark.parametrize("name", ["two", "tensor"])
def test_two_processes_equal_one(runs, name):
    (one, one_codes, one_said), (two, two_codes, two_said) = runs["one"], runs[name]
    assert one_codes == [0], one_said
    assert two_codes == [0, 0], two_said
    records = lines(two)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(
        [record["loss"] for record in records], [record["loss"] for record in lines(one)], rtol=1e-5
    )


def test_only_the_first_process_speaks_and_writes(runs):
    workdir, _, said = runs["two"]
    assert "process 0 of 2: 4 of 8 devices are here" in said[0] and f"step {STEPS}/{STEPS}" in said[0]
    assert "step" not in said[1] and "start:" not in said[1]
    assert len(list((workdir / "tensorboard").iterdir())) == 1


def test_killed_in_the_middle_of_a_save_and_started_again(runs, tmp_path):
    """From the last complete checkpoint on, the numbers are those of the undisturbed run."""
    workdir, codes, said = runs["killed"]
    # Nobody told the first process; it was ended by the missing heartbeats.
    assert codes == [-signal.SIGABRT, -signal.SIGKILL], said
    assert "another task died" in said[0]
    checkpoints = {path.name for path in (workdir / "checkpoints").iterdir()}
    (incomplete,) = checkpoints - {"3"}
    assert incomplete.startswith("6.")
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", workdir, copy], check=True)
    again = Run(workdir, 2, 4, MESH, STEPS)
    elsewhere = Run(copy, 1, 4, OTHER_MESH, STEPS)
    undisturbed = lines(runs["two"][0])
    for run in (again, elsewhere):
        codes, said = run.finish()
        assert set(codes) == {0}, said
        assert re.search(rf"incomplete checkpoint \S*/{re.escape(incomplete)}", said[0])
        assert "start: resume at step 3" in said[0]
    assert lines(workdir) == undisturbed
    moved = lines(copy)
    assert moved[:3] == undisturbed[:3] and [record["step"] for record in moved] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(
        [record["loss"] for record in moved], [record["loss"] for record in undisturbed], rtol=1e-5
    )
    assert {path.name for path in (copy / "checkpoints").iterdir()} == {"9", "12"}


def test_a_signal_to_one_of_two_saves_the_same_step_on_both(runs):
    workdir, codes, said = runs["preempted"]
    assert codes == [0, 0], said
    (saved,) = (workdir / "checkpoints").iterdir()
    for text in said:
        assert f"stopped at step {saved.name}, saved; the same command resumes there" in text
    assert lines(workdir)[-1]["step"] == int(saved.name)
    assert json.loads((saved / "data" / "metadata").read_text())["next_step"] == int(saved.name)


def test_a_disk_that_is_full_for_one_of_two_ends_both(runs):
    workdir, codes, said = runs["full"]
    assert codes == [-signal.SIGABRT, 2], said
    assert "could not save the checkpoint of step 3" in said[1] and "File too large" in said[1]
    # At once: the error is seen long before the next save would have told of it.
    assert not [path for path in (workdir / "checkpoints").iterdir() if not path.name.startswith("3.")]
