"""The scripts of launch/ at work, with stand-ins for the programs that they call."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.launch_scripts import COMMAND, ROOT, SETTINGS, dry_run, environment, launch

# Waits for a signal that is blocked: one that a handler takes could come just before the wait, which then has no end.
RUNS_UNTIL_SIGTERM = f"""#!{sys.executable}
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})
os.write(1, sys.argv[-1].encode() + b" started\\n")
signal.sigwait({{signal.SIGTERM}})
os.write(1, b"saved\\n")
"""
# Answers from files of one line each; an empty line is a failure.
GCLOUD = """
cd "${0%/*}"
answer() {
    local line
    line=$(head -n 1 "$1")
    sed -i 1d "$1"
    [[ $line ]] && echo "$line"
}
case "$*" in
    *" describe "*) answer describe ;;
    *SubState*) answer substate ;;
    *journalctl*) answer journal ;;
    *systemd-run*) echo start >>calls ;;
    *" ssh "* | *" scp "*) ;;
    *) echo "$4" >>calls ;;
esac"""


def program(folder: Path, name: str, lines: str) -> None:
    """Puts a stand-in for a program into `folder`: the lines of a bash script, or a whole script of its own."""
    file = folder / name
    file.write_text(lines if lines.startswith("#!") else f"#!/usr/bin/env bash\n{lines}\n")
    file.chmod(0o755)


def pod() -> tuple[list[str], list[str]]:
    """(the whole command, its last arguments) of the container of `launch/gke.sh`."""
    manifest = yaml.safe_load(dry_run("gke.sh"))
    (container,) = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    return container["command"] + container["args"], container["args"]


def test_processes_on_one_machine_start_together_and_stop_together(tmp_path):
    program(tmp_path, "infinity-jax", RUNS_UNTIL_SIGTERM)
    settings = environment(dict(PLATFORM="cpu", DEVICES="3", PROCESSES="3"), tmp_path)
    line = ["bash", "launch/one_machine.sh", *COMMAND]
    with subprocess.Popen(line, cwd=ROOT, env=settings, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout
        assert sorted(run.stdout.readline() for _ in range(3)) == [f"{i} started\n" for i in range(3)]
        run.send_signal(signal.SIGTERM)
        assert run.stdout.read() == "saved\n" * 3
    assert run.returncode == 0


def test_one_process_of_several_that_fails_is_the_exit_code(tmp_path):
    program(tmp_path, "infinity-jax", "[[ ${@: -1} != 1 ]] || exit 3")
    settings = dict(PLATFORM="cpu", DEVICES="2", PROCESSES="2")
    assert launch("one_machine.sh", *COMMAND, settings=settings, path=tmp_path).returncode == 3


@pytest.mark.parametrize("last, requeued", [("stopped at step 7, saved", True), ("step 9", False)])
def test_slurm_puts_a_stopped_run_back_into_the_queue_and_a_finished_one_not(tmp_path, last, requeued):
    log = f'case $word in --output=*) echo "0: {last}" >"${{word#*=}}" ;; esac'
    program(tmp_path, "srun", f'for word; do {log}; done\necho "$@"')
    program(tmp_path, "scontrol", 'echo "scontrol $*"')
    settings = dict(SLURM_JOB_ID="12", SLURM_NTASKS="4", SLURM_CPUS_PER_TASK="8")
    done = launch("slurm.sh", *COMMAND, settings=settings, path=tmp_path, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--coordinator auto --processes 4 --platform gpu" in done.stdout
    assert ("scontrol requeue 12" in done.stdout) == requeued


def test_a_task_of_a_slurm_array_runs_one_cell_of_a_sweep(tmp_path):
    program(
        tmp_path, "srun", 'for word; do case $word in --output=*) touch "${word#*=}" ;; esac; done; echo "$@"'
    )
    settings = dict(SLURM_JOB_ID="12", SLURM_NTASKS="4", SLURM_ARRAY_TASK_ID="7")
    for command, cell in ((["sweep", *COMMAND[1:]], True), (COMMAND, False)):
        done = launch("slurm.sh", *command, settings=settings, path=tmp_path, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert ("--cell 7 --coordinator auto" in done.stdout) == cell


def test_a_slurm_run_that_failed_fails(tmp_path):
    program(tmp_path, "srun", "exit 5")
    program(tmp_path, "scontrol", 'echo "scontrol $*"')
    settings = dict(SLURM_JOB_ID="12", SLURM_NTASKS="4")
    done = launch("slurm.sh", *COMMAND, settings=settings, path=tmp_path, folder=tmp_path)
    assert done.returncode == 5 and "scontrol" not in done.stdout


def test_the_words_of_a_stopped_run_are_those_the_scripts_look_for():
    said = "".join(path.read_text() for path in (ROOT / "infinity_jax").rglob("*.py"))
    assert '"stopped at step %d' in said
    for script in ("slurm.sh", "tpu_vm.sh"):
        assert '"stopped at step"' in (ROOT / "launch" / script).read_text()


def test_tpu_vm_goes_on_after_a_preemption_and_ends_with_the_run(tmp_path):
    states = ["", "WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "SUSPENDED", "ACTIVE", "ACTIVE", "ACTIVE"]
    answers = {
        "describe": states,
        "substate": ["dead", "running", "dead", "exited", "exited"],
        "journal": ["stopped at step 7, saved", "the run has its steps"],
    }
    for name, lines in answers.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    program(tmp_path, "gcloud", GCLOUD)
    program(tmp_path, "sleep", "")
    program(tmp_path, "git", "")
    done = launch("tpu_vm.sh", *COMMAND, settings=SETTINGS["tpu_vm.sh"], path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text().split() == [
        "create",
        "start",
        "delete",
        "create",
        "start",
        "start",
    ]
    assert "the run has its steps" in done.stdout


@pytest.mark.parametrize("state, substate", [("FAILED", ""), ("ACTIVE", "failed"), ("ACTIVE", "dead")])
def test_tpu_vm_stops_when_it_cannot_go_on(tmp_path, state, substate):
    answers = f'case "$*" in *describe*) echo {state} ;; *SubState*) echo {substate} ;; *) echo "$@" ;; esac'
    program(tmp_path, "gcloud", answers)
    program(tmp_path, "git", "exit 1")  # nothing to install
    done = launch("tpu_vm.sh", *COMMAND, settings=SETTINGS["tpu_vm.sh"], path=tmp_path)
    assert done.returncode == 1 and "systemd-run" not in done.stdout


def test_gke_applies_what_the_dry_run_shows(tmp_path):
    program(tmp_path, "kubectl", 'echo "$@" && cat')
    done = launch("gke.sh", *COMMAND, settings=SETTINGS["gke.sh"], path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("apply --filename=-\n" + dry_run("gke.sh").split("\n", 1)[1])


@pytest.mark.parametrize("code", [0, 2])
def test_gke_pod_has_the_exit_code_of_its_run(tmp_path, code):
    program(tmp_path, "infinity-jax", f'printf "%s\\n" "$@"; exit {code}')
    line, arguments = pod()
    done = subprocess.run(line, env=environment({}, tmp_path), capture_output=True, text=True)
    assert done.returncode == code
    assert done.stdout.splitlines() == arguments


def test_a_stopped_gke_pod_saves_and_counts_as_failed(tmp_path):
    program(tmp_path, "infinity-jax", RUNS_UNTIL_SIGTERM)
    line, _ = pod()
    with subprocess.Popen(line, env=environment({}, tmp_path), stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout and run.stdout.readline() == "tpu started\n"
        run.send_signal(signal.SIGTERM)
        assert run.stdout.read() == "saved\n"
    assert run.returncode == 143
