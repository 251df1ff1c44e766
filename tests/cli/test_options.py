"""Every option of every command: what it takes, and what it refuses before any work is done."""

import argparse

import pytest

from infinity_jax.cli import main as cli
from infinity_jax.cli import options

PARSERS = {command.name: argparse.ArgumentParser() for command in cli.COMMANDS}
for command in cli.COMMANDS:
    command.add_arguments(PARSERS[command.name])
OPTIONS = [
    (name, action)
    for name, parser in PARSERS.items()
    for action in parser._actions
    if action.nargs != 0 and not isinstance(action, argparse._HelpAction)
]
# What each reader of an option refuses. An option without choices must have one of these.
REFUSED = {
    "any_text": ["a\0b"],
    "text": ["", "  ", "a\0b"],
    "output_file": ["", " ", "a\0b"],
    "output_sheet": ["", " ", "a\0b"],
    "output_folder": ["", " ", "a\0b"],
    "numbers": ["", "high", "nan", "inf", "1,", "1,-inf", "1e999", "1,,2"],
    "number": ["", "-1", "nan", "inf", "1,2", "high"],
    "probability": ["", "0", "1.5", "-1", "nan", "inf", "0.5,0.9"],
    "share": ["", "1.5", "-0.1", "nan", "inf", "0.5,0.9"],
    "seconds": ["", "0", "-1", "nan", "inf", "1e9", "1,2", "soon"],
    "minutes": ["", "0", "-1", "nan", "inf", "1e9", "1,2", "soon"],
    "whole_number": ["", "-1", "1.5", "nan", "1e3", "9" * 5000, str(2**31)],
    "whole_numbers": ["", "-1", "1,,2", "1.5", str(2**31)],
    "count": ["", "0", "-1", "1.5", "9" * 5000, str(2**31)],
    "_devices": ["", "0", "-1", "some", str(2**31)],
    "_shard": ["", "1", "8/8", "-1/8", "0/0", "a/b"],
    "_shares": ["", "1:1=0", "1:1=-1", "1:1=nan", "1:1=inf", "1:1=x"],
    "_two_files": ["", "a", "a,", ",", "a,b,c"],
}


@pytest.mark.parametrize(("name", "action"), OPTIONS, ids=lambda x: getattr(x, "dest", x))
def test_every_option_says_what_it_takes_and_refuses_the_rest(name, action):
    if action.choices is not None:
        return
    kind = getattr(action.type, "__name__", None)
    assert kind in REFUSED, f"{name} {action.dest}: give it a type of cli/options.py, and that one a row here"
    for text in REFUSED[kind]:
        with pytest.raises((argparse.ArgumentTypeError, ValueError)):
            action.type(text)


@pytest.mark.parametrize("option", ["--workdir", "--out", "--checkpoint", "--json", "--sheet", "--config"])
def test_an_empty_path_is_refused(option, capsys):
    name = next(name for name, action in OPTIONS if option in action.option_strings)
    with pytest.raises(SystemExit) as end:
        cli.main([name, option, ""])
    assert end.value.code == 2 and f"argument {option}: it is empty" in capsys.readouterr().err


def test_outputs_are_tried_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    long, deep = "x" * 250, tmp_path / "a" / "b"
    (sample,) = (command for command in cli.COMMANDS if command.name == "sample")

    def problem(kind, path) -> str:
        try:
            sample.check_outputs(argparse.Namespace(out=kind(str(path))))
        except options.UserError as error:
            return str(error)
        return ""

    for kind in (options.output_file, options.output_sheet):
        assert "--out" in problem(kind, tmp_path) and "is a folder" in problem(kind, tmp_path)
        assert "cannot be written: File name too long" in problem(kind, tmp_path / long)
        assert not problem(kind, tmp_path / "new") and not problem(kind, tmp_path / "file")
    assert "its folder does not exist; make it first" in problem(options.output_file, deep / "f")
    assert not problem(options.output_sheet, deep / "f") and not problem(options.output_folder, deep)
    for wrong in ("file", "file/below", "link"):
        assert "is not a folder; name another one" in problem(options.output_folder, tmp_path / wrong)
    assert "File name too long" in problem(options.output_folder, tmp_path / long / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    """Root may write anywhere, so the refusal of the system is played."""

    def refuse(self, exist_ok):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    monkeypatch.setattr(cli, "_prepare_process", lambda: None)
    for arguments in (
        ["sample", "a", "--out", str(tmp_path)],
        ["train", "--config", "emoji", "--workdir", str(tmp_path / "w")],
        ["evaluate", "--json", str(tmp_path / "e.json")],
    ):
        assert cli.main(arguments) == 2


def test_what_may_be_meant(capsys):
    for arguments, message in (
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["sampel", "a"], "unknown command 'sampel'; did you mean sample?"),
        (
            ["sample", "a", "--out", "o", "--ceckpoint", "c"],
            "unknown argument '--ceckpoint'; did you mean --checkpoint?",
        ),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 2 and message in capsys.readouterr().err


def test_without_a_command_all_are_listed(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([])
    assert end.value.code == 2
    text = capsys.readouterr().err
    assert all(command.name in text for command in cli.COMMANDS) and text.endswith("name a COMMAND\n")


def test_the_version(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith("infinity-jax ")


def test_settings_are_checked_before_anything_is_loaded(capsys, monkeypatch):
    monkeypatch.setattr(cli, "_prepare_process", lambda: None)
    assert cli.main(["sample", "a", "--out", "o", "--checkpoint", "none", "--tau=-1"]) == 2
    assert "tau is (-1.0,); it must be a number from 0" in capsys.readouterr().err


def test_more_pictures_than_a_list_should_hold(capsys, monkeypatch):
    monkeypatch.setattr(cli, "_prepare_process", lambda: None)
    assert cli.main(["sample", "a", "--out", "o", "--checkpoint", "none", "--count", "2000000000"]) == 2
    assert "are more than 1,000,000 pictures; ask for fewer" in capsys.readouterr().err


@pytest.mark.parametrize("topology", ["cpu:100000000", "cpu:0"])
def test_a_crowd_of_virtual_devices_is_refused(topology, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "_prepare_process", lambda: None)
    monkeypatch.setattr("os.environ", {})
    words = ["--config", "t2i", "--size", "125m", "--budget", "0.06M", "--json", str(tmp_path / "f")]
    assert cli.main(["compile", *words, "--topology", topology]) == 2
    assert "use cpu:1 to cpu:1024" in capsys.readouterr().err
