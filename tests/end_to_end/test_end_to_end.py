"""A user's own folder of pictures, from nothing to sampled pictures, through the command line."""

import json

import jax
import numpy as np
import pytest
from PIL import Image, ImageDraw

from infinity_jax.checkpoints import pretrained
from infinity_jax.cli.main import main
from infinity_jax.training.run_log import TIMING_KEYS, read_lines


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that runs one command and checks its exit code, and the folder where all is kept."""
    root = tmp_path_factory.mktemp("end_to_end")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFINITY_DATA", str(root / "data"))
        pictures = root / "pictures"
        pictures.mkdir()
        rows = ["file_name,caption"]
        colours = ["red", "green", "blue", "orange", "purple", "black"]
        for i in range(24):
            image = Image.new("RGB", (70, 64), "white")
            draw = ImageDraw.Draw(image).ellipse if i % 2 else ImageDraw.Draw(image).rectangle
            draw((10 + i, 12, 50, 52), fill=colours[i % 6])
            image.save(pictures / f"{i}.png")
            rows.append(f"{i}.png,{colours[i % 6]} {'disc' if i % 2 else 'box'} {i}")
        (pictures / "captions.csv").write_text("\n".join(rows) + "\n")

        def command(*arguments: str, code: int = 0) -> None:
            assert main([*map(str, arguments)]) == code

        data = f"--config.data.source=folder:{pictures}"
        tokenizer = ("train-tokenizer", "--config", "configs/emoji_tokenizer.py:debug", data)
        command(*tokenizer, "--workdir", root / "tokenizer")
        yield command, root, data


def _train(run, workdir, *more, code: int = 0):
    command, root, data = run
    tokenizer = f"--config.tokenizer={root / 'tokenizer'}"
    fixed = ("train", "--config", "configs/emoji.py:debug", data, tokenizer, "--workdir", root / workdir)
    command(*fixed, *more, code=code)
    return [
        {k: v for k, v in line.items() if k not in TIMING_KEYS}
        for line in read_lines(root / workdir / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def trained(run):
    """The metrics of an undisturbed run of four steps, in the workdir `whole`."""
    return _train(run, "whole", "--config.train.steps=4", "--config.optim.schedule=constant")


@pytest.mark.long
def test_metrics_have_the_promised_keys(trained):
    assert [line["step"] for line in trained] == [1, 2, 3, 4]
    for line in trained:
        assert {"loss", "bit_accuracy", "loss_per_scale", "bit_accuracy_per_scale"} <= line.keys()
        assert len(line["loss_per_scale"]) == len(line["bit_accuracy_per_scale"]) == 6


@pytest.mark.long
def test_a_resumed_run_gives_the_numbers_of_an_undisturbed_one_bit_for_bit(run, trained):
    constant = "--config.optim.schedule=constant"
    _train(run, "parts", "--config.train.steps=2", constant)
    resumed = _train(run, "parts", "--config.train.steps=4", constant)
    assert resumed == trained
    root = run[1]
    whole, parts = (pretrained.load_model(root / name).params for name in ("whole", "parts"))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)


@pytest.mark.long
def test_the_same_seed_and_prompt_give_the_same_picture(run, trained):
    command, root, _ = run
    for out in ("one", "two"):
        command(
            "sample", "red disc", "blue box", "--checkpoint", root / "whole", "--seed", 5, "--out", root / out
        )
    first, again = (np.asarray(Image.open(root / out / "0000-red-disc.png")) for out in ("one", "two"))
    assert first.shape == (64, 64, 3)
    np.testing.assert_array_equal(first, again)
    # The second picture of that call had seed 6: beside another one with that seed it is the same, and alone, in a
    # batch of one, up to the rounding of the decoder.
    second = np.asarray(Image.open(root / "one" / "0001-blue-box.png"))
    for prompts, most in ((("blue box", "a cat"), 0), (("blue box",), 1)):
        command("sample", *prompts, "--checkpoint", root / "whole", "--seed", 6, "--out", root / "three")
        other = np.asarray(Image.open(root / "three" / "0000-blue-box.png"))
        assert np.abs(second.astype(int) - other).max() <= most
    assert (root / "one" / "sheet.png").is_file()


@pytest.mark.long
def test_an_exported_checkpoint_draws_the_same_and_can_be_trained_on(run, trained):
    command, root, _ = run
    command("export", "--checkpoint", root / "whole", "--out", root / "exported", "--dtype", "float32")
    whole, exported = (pretrained.load_model(root / name) for name in ("whole", "exported"))
    jax.tree.map(np.testing.assert_array_equal, whole.params, exported.params)
    jax.tree.map(np.testing.assert_array_equal, whole.tokenizer.params, exported.tokenizer.params)
    config = json.loads((root / "exported" / "config.json").read_text())
    assert {"commit", "command"} <= config["origin"]["transformer"]["origin"].keys()
    from_folder = _train(run, "from_folder", f"--config.train.init_from={root / 'exported'}")
    from_workdir = _train(run, "from_workdir", f"--config.train.init_from={root / 'whole'}")
    assert from_folder == from_workdir
    assert from_folder[0]["loss"] != trained[0]["loss"]


@pytest.mark.slow
def test_a_model_with_learned_positions_trains_and_its_export_draws(run, trained, capsys):
    command, root, _ = run
    learned = "--config.model.positions=learned:64px"
    numbers = _train(run, "learned", learned)
    assert len(numbers) == 2 and numbers[0]["loss"] != trained[0]["loss"]
    command(
        "export", "--checkpoint", root / "learned", "--out", root / "exported_learned", "--dtype", "float32"
    )
    for checkpoint, out in (("learned", "of_run"), ("exported_learned", "of_export")):
        command("sample", "red disc", "--checkpoint", root / checkpoint, "--out", root / out)
    ours, exported = (
        np.asarray(Image.open(root / name / "0000-red-disc.png")) for name in ("of_run", "of_export")
    )
    np.testing.assert_array_equal(ours, exported)
    _train(run, "wrong", "--config.model.positions=learned:32px", code=2)
    assert "this schedule is 1x1 2x2 3x3 4x4 6x6 8x8; use" in capsys.readouterr().err


def test_a_tokenizer_is_measured_on_the_data_it_was_trained_on(run, trained):
    command, root, data = run
    for checkpoint in ("tokenizer", "whole"):  # its own workdir, and the one of a transformer that reads it
        file = root / f"tokenizer-{checkpoint}.json"
        command("evaluate-tokenizer", "--checkpoint", root / checkpoint, "--json", file)
    alone, inside = (
        json.loads((root / f"tokenizer-{name}.json").read_text()) for name in ("tokenizer", "whole")
    )
    assert alone["bits"] == 32 and data.endswith(alone["data"])
    for numbers in (alone, inside):
        del numbers["checkpoint"], numbers["seconds"]
    assert alone == inside


@pytest.mark.long
def test_evaluation_writes_the_promised_keys(run, trained):
    command, root, _ = run
    command(
        "evaluate",
        "--checkpoint",
        root / "whole",
        "--prompts",
        4,
        "--json",
        root / "e.json",
        "--sheet",
        root / "e.png",
    )
    numbers = json.loads((root / "e.json").read_text())
    promised = "validation_loss bit_accuracy psnr reconstruction_kid kid retrieval_top1 retrieval_top5 \
        retrieval_compositions_top1 retrieval_compositions_top5 prompts cfg tau seed"
    assert set(promised.split()) <= numbers.keys()
    assert numbers["prompts"] == 4 and numbers["retrieval_compositions_top1"] is None
    assert (root / "e.png").is_file()


@pytest.mark.long
def test_mistakes_are_named_with_a_remedy(run, trained, capsys):
    command, root, _ = run
    _train(run, "wrong", "--config.model.bits=16", code=2)
    assert "--config.model.bits=32" in capsys.readouterr().err
    _train(run, "whole", "--config.model.width=128", code=2)
    assert "another model" in capsys.readouterr().err
    _train(run, "wrong", "--config.train.stepps=3", code=2)
    assert "config.train.steps" in capsys.readouterr().err
    for arguments, remedy in (
        (("x", "--aspect-ratio", "2:1"), "use 1:1"),
        ((" ",), "prompt 1 of 1 is empty"),
        (("x", "--checkpoint", root / "tokenizer"), "transformer's checkpoint"),
        (("x", "--checkpoint", root / "nowhere"), "no checkpoint folder"),
    ):
        default = () if "--checkpoint" in arguments else ("--checkpoint", root / "whole")
        command("sample", *arguments, *default, "--out", root / "none", code=2)
        assert remedy in capsys.readouterr().err
    assert not (root / "none").exists()
