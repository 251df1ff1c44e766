"""The scripts of launch/: what they would run (--dry-run), and what they say to missing and wrong settings."""

import re
import shlex
import subprocess

import pytest
import yaml
from helpers.launch_scripts import COMMAND, ROOT, SETTINGS, dry_run, environment, launch

CASES = [(script, name) for script, settings in SETTINGS.items() for name in settings]


@pytest.mark.parametrize("script", sorted((ROOT / "launch").glob("*.sh")), ids=lambda path: path.name)
def test_is_a_bash_script(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert len(script.read_text().splitlines()) < 100


@pytest.mark.parametrize("script", SETTINGS)
def test_dry_run_is_the_same_every_time(script):
    assert dry_run(script) == dry_run(script)


@pytest.mark.parametrize("script", SETTINGS)
def test_help_names_every_setting(script):
    done = launch(script, "--help", settings={})
    assert done.returncode == 0
    for name in SETTINGS[script]:
        assert re.search(rf"^  {name} .*", done.stdout, re.MULTILINE), name
    assert "SBATCH --" not in done.stdout and "set -euo" not in done.stdout


@pytest.mark.parametrize("script, name", CASES)
def test_a_missing_setting_is_named_in_one_line(script, name):
    rest = {key: value for key, value in SETTINGS[script].items() if key != name}
    done = launch(script, "--dry-run", *COMMAND, settings=rest)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(rf"{script}: set {name}; .*\n", done.stderr)


@pytest.mark.parametrize("script", SETTINGS)
@pytest.mark.parametrize(
    "arguments, word",
    [
        ([], "train, train-tokenizer or sweep"),
        (["sample"], "'sample'"),
        (["train", "--workdir", "/bucket/a"], "--config"),
        (["train", "--config", "configs/t2i.py"], "--workdir"),
        ([*COMMAND, "--processes", "3"], "--processes is set by this script"),
    ],
)
def test_a_wrong_command_is_named_in_one_line(script, arguments, word):
    done = launch(script, "--dry-run", *arguments, settings=SETTINGS[script])
    assert done.returncode == 2 and done.stdout == ""
    assert word in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "script, settings",
    [
        ("one_machine.sh", dict(PLATFORM="gpus")),
        ("one_machine.sh", dict(PLATFORM="gpu", PROCESSES="2")),
        ("one_machine.sh", dict(PLATFORM="cpu", PROCESSES="3", DEVICES="8")),
        ("slurm.sh", dict(NODES="two")),
        ("slurm.sh", dict(GPUS="0")),
        ("tpu_vm.sh", dict(HOSTS="0")),
        ("tpu_vm.sh", dict(SPOT="yes")),
        ("tpu_vm.sh", dict(ACCELERATOR_TYPE="tpu7x-128")),
        ("gke.sh", dict(TOPOLOGY="16")),
        ("gke.sh", dict(TOPOLOGY="3x3")),
        ("gke.sh", dict(NAME="My_Run")),
        ("gke.sh", dict(BUCKET="gs://bucket")),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(script, settings):
    done = launch(script, "--dry-run", *COMMAND, settings=SETTINGS[script] | settings)
    assert done.returncode == 2
    assert list(settings)[-1] in done.stderr and done.stderr.count("\n") == 1


def test_one_process_on_one_machine():
    assert shlex.split(dry_run("one_machine.sh")) == ["infinity-jax", *COMMAND, "--platform", "gpu"]


def test_several_processes_on_one_machine():
    lines = dry_run(
        "one_machine.sh",
        "--config.data.source=folder:my pictures",
        PLATFORM="cpu",
        DEVICES="8",
        PROCESSES="2",
    )
    for i, line in enumerate(lines.splitlines()):
        words = shlex.split(line)
        assert "XLA_FLAGS=--xla_force_host_platform_device_count=4" in words
        assert "--config.data.source=folder:my pictures" in words
        assert words[-8:] == [
            "--platform",
            "cpu",
            "--coordinator",
            "127.0.0.1:8476",
            "--processes",
            "2",
            "--process",
            str(i),
        ]


def test_slurm_has_one_process_for_each_gpu():
    submitted, started = (shlex.split(line) for line in dry_run("slurm.sh").splitlines()[1::2])
    assert submitted[0] == "sbatch" and submitted[-len(COMMAND) :] == COMMAND
    assert {"--nodes=2", "--ntasks=16", "--ntasks-per-node=8", "--gpus-per-node=8"} <= set(submitted)
    after = ["infinity-jax", *COMMAND, "--coordinator", "auto", "--processes", "16", "--platform", "gpu"]
    assert started[0] == "srun" and started[-len(after) :] == after


def test_tpu_vm_commands():
    lines = [
        shlex.split(line)
        for line in dry_run("tpu_vm.sh", SPOT="1", SLICES="2").splitlines()
        if line[0] != "#"
    ]
    create = lines[0]
    assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "pod"]
    assert {"--node-count=2", "--node-prefix=pod", "--spot", "--runtime-version=v2-alpha-tpuv5-lite"} <= set(
        create
    )
    remote = [
        word.removeprefix("--command=") for line in lines for word in line if word.startswith("--command=")
    ]
    assert any("pip install --quiet '.[tpu]'" in command for command in remote)
    (start,) = (shlex.split(command) for command in remote if "systemd-run" in command)
    assert "--setenv=INFINITY_DATA=/my data" in start
    after = [*COMMAND, "--coordinator", "auto", "--processes", "64", "--platform", "tpu"]
    assert start[-len(after) :] == after


def test_gke_manifest():
    text = dry_run("gke.sh", '--config.data.source=folder:/bucket/"my" \\ $HOME', SLICES="2", SPOT="1")
    assert "${" not in text
    (document,) = yaml.safe_load_all(text)
    assert document["kind"] == "JobSet" and document["metadata"]["name"] == "pod"
    (slices,) = document["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"], job["backoffLimit"]) == (2, 8, 8, 0)
    pod = job["template"]["spec"]
    labels = {"tpu-accelerator": "tpu-v6e-slice", "tpu-topology": "4x8", "spot": "true"}
    assert pod["nodeSelector"] == {f"cloud.google.com/gke-{key}": value for key, value in labels.items()}
    (train,) = pod["containers"]
    assert train["args"][: len(COMMAND)] == COMMAND
    after = [
        '--config.data.source=folder:/bucket/"my" \\ $HOME',
        "--coordinator",
        "auto",
        "--processes",
        "16",
    ]
    assert train["args"][len(COMMAND) :] == [*after, "--platform", "tpu"]
    assert train["resources"]["limits"] == {"google.com/tpu": 4}


def test_gke_wants_a_workdir_that_all_pods_see():
    done = launch("gke.sh", "--dry-run", *COMMAND[:-1], "runs/a", settings=SETTINGS["gke.sh"])
    assert done.returncode == 2 and "--workdir is 'runs/a'" in done.stderr


@pytest.mark.parametrize("script", SETTINGS)
def test_examples_work_and_are_those_of_the_readme(script):
    text = launch(script, "--help", settings={}).stdout
    examples = re.split("Examples?:\n", text)[1]
    assert " ".join(examples.split()) in " ".join((ROOT / "launch" / "README.md").read_text().split())
    line = examples.replace(f"launch/{script} ", f"launch/{script} --dry-run ")
    done = subprocess.run(
        ["bash", "-euc", line], cwd=ROOT, env=environment({}), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--config configs/" in done.stdout or '"--config", "configs/' in done.stdout
