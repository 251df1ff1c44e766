import errno
import subprocess
import sys

import jax
import pytest

from infinity_jax.cli import main as cli
from infinity_jax.errors import UserError
from infinity_jax.sampling.request import SampleRequest, SystemOptions

COMMANDS = (
    "prepare",
    "train-tokenizer",
    "train",
    "train-upscaler",
    "sample",
    "edit",
    "upscale",
    "generate",
    "evaluate",
    "evaluate-tokenizer",
    "evaluate-upscaler",
    "fid",
    "export",
    "convert",
    "compile",
    "sweep",
    "scaling",
    "ablate",
)


@pytest.fixture
def command(monkeypatch):
    """Replaces the `main` of the module that does a command's work."""

    def replace(module, main):
        monkeypatch.setattr(f"infinity_jax.{module}.main", main)

    return replace


@pytest.fixture(autouse=True)
def process_unchanged(monkeypatch):
    """Logging and memory settings are the process's, here the test run's."""
    monkeypatch.setattr(cli, "_prepare_process", lambda: None)


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_an_example_and_explains_each_option(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"examples:\n  infinity-jax {name}" in text


def test_help_does_not_import_jax():
    code = (
        "import sys; from infinity_jax.cli import main as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_config_changes_reach_the_training(command, tmp_path):
    file = tmp_path / "small.py"
    file.write_text(
        "import ml_collections\n"
        "def get_config(argument=None):\n"
        "    return ml_collections.ConfigDict({'train': {'steps': 1}, 'argument': argument or ''})\n"
    )
    got = {}
    for name in ("train_transformer", "train_tokenizer"):
        note = lambda config, workdir, name=name: got.update({name: (config.to_dict(), workdir)})  # noqa: E731
        command(f"training.{name}", note)
    arguments = ["--config", f"{file}:debug", "--config.train.steps=5", "--workdir", "w"]
    assert cli.main(["train", *arguments]) == 0
    assert cli.main(["train-tokenizer", *arguments]) == 0
    assert (
        got["train_transformer"]
        == got["train_tokenizer"]
        == ({"train": {"steps": 5}, "argument": "debug"}, "w")
    )


def test_misspelt_config_key_names_the_nearest(tmp_path, capsys):
    file = tmp_path / "small.py"
    file.write_text(
        "import ml_collections\n"
        "def get_config(argument=None):\n"
        "    return ml_collections.ConfigDict({'train': {'steps': 1}})\n"
    )
    assert cli.main(["train", "--config", str(file), "--workdir", "w", "--config.train.stpes=5"]) == 2
    error = capsys.readouterr().err
    assert "unknown config key config.train.stpes; did you mean config.train.steps?" in error
    assert "Traceback" not in error


def test_sampling_options(command):
    got = {}
    names = ("request", "out", "system", "settings", "skip_existing", "preview")
    command("sampling.prompts_to_files", lambda *values: got.update(zip(names, values, strict=True)))
    words = ["--seed", "3", "--cfg", "1,2.5", "--tau", "0.5", "--top-p", "0.9", "--aspect-ratio", "3:2"]
    words += ["--negative-prompt", "dog", "--guidance", "pyramid", "--pruning", "fastvar", "--budget", "1M"]
    words += ["--unguided-scales", "4,5", "--reuse-guidance", "--checkpoint", "c", "--mesh", "data=8"]
    words += ["--rules", "dp", "--batch", "64", "--skip-existing", "--out", "o"]
    assert cli.main(["sample", "red heart", "cat", *words]) == 0
    assert got == {
        "request": SampleRequest(["red heart", "cat"], range(3, 5), ["dog", "dog"], "3:2", "1M", 64),
        "out": "o",
        "system": SystemOptions("c", "data=8", "dp"),
        "settings": {
            "cfg": (1.0, 2.5),
            "tau": (0.5,),
            "top_p": 0.9,
            "guidance": "pyramid",
            "unguided_scales": (4, 5),
            "reuse_guidance": True,
            "pruning": "fastvar",
        },
        "skip_existing": True,
        "preview": False,
    }


def test_several_pictures_of_a_prompt_have_seeds_that_follow_each_other(command):
    got = []
    command("sampling.prompts_to_files", lambda request, *rest: got.append(request))
    assert cli.main(["sample", "cat", "dog", "--count", "3", "--seed", "7", "--out", "o"]) == 0
    assert got == [SampleRequest(["cat"] * 3 + ["dog"] * 3, range(7, 13))]


def test_settings_that_are_not_named_are_the_checkpoints_own(command):
    got = {}
    command("evaluation.evaluate_checkpoint", lambda **options: got.update(options))
    assert cli.main(["evaluate", "--json", "f", "--top-p", "0.9"]) == 0
    assert got["settings"] == {"top_p": 0.9}


def test_evaluation_does_not_start_where_its_numbers_cannot_be_written(tmp_path, capsys):
    assert cli.main(["evaluate", "--checkpoint", "none", "--json", str(tmp_path / "a" / "e.json")]) == 2
    assert "its folder does not exist" in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert cli.main(["evaluate", "--checkpoint", "none", "--json", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_prompts_from_a_file_and_devices(command, tmp_path, capsys):
    got = {}
    command(
        "sampling.prompts_to_files",
        lambda request, out, system, *rest: got.update(prompts=request.prompts, mesh=system.mesh),
    )
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffred heart\r\n\r\n  \ncafé au lait\n\nx".encode())
    assert cli.main(["sample", "--out", "o", "--prompts", str(file), "--devices", "4"]) == 0
    assert got["prompts"] == ["red heart", "café au lait", "x"] and got["mesh"] == "data=4"
    assert cli.main(["sample", "--devices", "all", "--out", "o", "cat", "dog"]) == 0
    assert got["prompts"] == ["cat", "dog"] and got["mesh"] == f"data={jax.device_count()}"
    for content, message in [
        (b"cat\n\ncaf\xe9\n", "prompts.txt, line 3: byte 0xe9 is not UTF-8"),
        ("cat\n\u200b\n".encode(), "prompts.txt, line 2: the prompt is empty"),
        (b"\n \n", "holds no prompts"),
    ]:
        file.write_bytes(content)
        assert cli.main(["sample", "--prompts", str(file), "--out", "o"]) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["sample", "--prompts", str(tmp_path / "none"), "--out", "o"]) == 2
    assert "cannot read the prompts" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sample", "--out", "o"],
        ["sample", "a", "--out", "o", "--cfg", "high"],
        ["sample", "a", "--out", "o", "--top-p", "1.5"],
        ["sample", "a", "--out", "o", "--top-p", "0.5,0.9"],
        ["sample", "a", "--out", "o", "--guidance", "strong"],
        ["sample", "a", "--out", "o", "--config.x=1"],
        ["sample", "a", "--out", "o", "--prompts", "f"],
        ["sample", "a", "--out", "o", "--batch", "0"],
        ["sample", "a", "--out", "o", "--devices", "some"],
        ["sample", "a", "--out", "o", "--devices", "2", "--mesh", "data=2"],
        ["evaluate", "--json", "f", "--seed", "-1"],
        ["train", "--config", "f"],
        ["train", "--config", "f", "--workdir", "w", "--confg.x=1"],
        ["paint"],
    ],
)
def test_wrong_arguments_end_with_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2 and "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("width 770 is wrong; use 768"), 2, "width 770 is wrong; use 768"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/a/b"),
            1,
            "the disk is full while writing /a/b; make room",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_become_messages_and_exit_codes(command, capsys, error, code, words):
    def fail(source, out, workers):
        raise error

    command("data.prepared.prepare", fail)
    assert cli.main(["prepare"]) == code
    captured = capsys.readouterr().err
    assert words in captured and "Traceback" not in captured


def test_other_errors_keep_their_traceback(command):
    def fail(source, out, workers):
        raise OSError(errno.EIO, "broken")

    command("data.prepared.prepare", fail)
    with pytest.raises(OSError, match="broken"):
        cli.main(["prepare"])
