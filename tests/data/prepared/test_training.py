"""Training from prepared shards: one program a ratio, resumed without loss, from pictures and from their features."""

import json
import logging

import jax
import numpy as np
import pytest
from helpers import pictures

from infinity_jax.cli.main import main
from infinity_jax.data.prepared import writer
from infinity_jax.training import run_log
from infinity_jax.training.sections import EVALUATED


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Ten pictures of 2:1 and ten of 1:1."""
    folder = tmp_path_factory.mktemp("set")
    rows = ["file_name,caption"]
    for i in range(20):
        size = (64, 64) if i % 2 else (40, 80)
        (folder / f"{i}.png").write_bytes(pictures.flat(i, *size))
        rows.append(f'{i}.png,"{pictures.caption(i)}"')
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    writer.prepare(f"folder:{folder}", folder / "out", workers=1)
    return folder / "out"


def train(source, workdir, *more, code=0):
    fixed = ["--config", "configs/t2i.py:debug", "--config.model.layers=1", "--config.model.drop_path=0.0"]
    assert (
        main(["train", *fixed, f"--config.data.source=records:{source}", *more, "--workdir", str(workdir)])
        == code
    )
    return [
        {k: v for k, v in line.items() if k not in run_log.TIMING_KEYS}
        for line in run_log.read_lines(workdir / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train(shards, workdir, "--config.train.steps=6", f"--config.data.validation=records:{shards}",
                          "--config.train.evaluate_every=6")  # fmt: skip


@pytest.mark.long
def test_every_step_is_logged_with_the_share_that_waited_for_data(undisturbed):
    workdir, lines = undisturbed
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(line["loss"]) and len(line["loss_per_scale"]) == 5 for line in lines)
    waited = [line["data_wait_share"] for line in run_log.read_lines(workdir / "metrics.jsonl")]
    assert all(0 <= share <= 1 for share in waited)


def test_validation_covers_all_ratios(undisturbed):
    [evaluation] = run_log.read_lines(undisturbed[0] / "evaluations.jsonl")
    assert all(np.isfinite(evaluation[name]) for name in EVALUATED["train"])  # what train.keep_best may name
    assert np.isfinite(evaluation["validation_loss"]) and len(evaluation["validation_loss_per_scale"]) == 5


@pytest.mark.long
def test_a_resumed_run_gives_the_numbers_of_an_undisturbed_one(shards, undisturbed, tmp_path):
    train(shards, tmp_path, "--config.train.steps=2")
    assert train(shards, tmp_path, "--config.train.steps=6") == undisturbed[1]


@pytest.mark.long
def test_programs_of_all_ratios_are_compiled_before_a_run(shards, undisturbed, tmp_path):
    config = ["--config.model.layers=1", "--config.model.drop_path=0.0"]
    config += [f"--config.data.source=records:{shards}", "--config.train.steps=2"]
    ahead = ["compile", "--warm", "configs/t2i.py:debug", "--workdir", str(tmp_path)]
    assert main([*ahead, "--topology", f"cpu:{jax.device_count()}", *config]) == 0
    assert len(list((tmp_path / "programs").iterdir())) == 4  # of two ratios the step and the picture encoder
    assert train(shards, tmp_path, "--config.train.steps=2") == undisturbed[1][:2]


@pytest.mark.long
def test_a_run_says_how_many_programs_it_compiles_before_its_first_step(
    shards, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("absl"), "propagate", True)
    with caplog.at_level("INFO"):
        train(shards, tmp_path, "--config.train.steps=1")
    compiled = [message for message in caplog.messages if message.startswith("compiled the step")]
    assert len(compiled) == 2 and {"features 2x5x10x32" in line for line in compiled} == {True, False}


@pytest.mark.long
def test_features_give_the_same_labels_and_another_encoder_is_refused(shards, undisturbed, tmp_path, capsys):
    features = tmp_path / "features"
    command = ["prepare", "--source", f"records:{shards}", "--out", str(features)]
    assert main([*command, "--features", "configs/t2i.py:debug"]) == 0
    lines = train(features, tmp_path / "run", "--config.train.steps=6")
    for ours, wanted in zip(lines, undisturbed[1], strict=True):
        # Those of the text are rounded to bfloat16 either way.
        assert ours["loss"] == pytest.approx(wanted["loss"], abs=2e-4)
    again = {file: file.stat().st_mtime_ns for file in (features / "parts").rglob("*")}
    assert main([*command, "--features", "configs/t2i.py:debug"]) == 0
    assert again == {file: file.stat().st_mtime_ns for file in (features / "parts").rglob("*")}
    capsys.readouterr()
    train(features, tmp_path / "other", "--config.text.max_length=16", code=2)
    assert "were made with text_length 32, and config.text.max_length gives 16" in capsys.readouterr().err
    index = json.loads((features / "index.json").read_text())
    older = {key: value for key, value in index["features"].items() if key != "picture_features"}
    assert older != index["features"]
    index["features"]["tokenizer"] = "0" * 24
    (features / "index.json").write_text(json.dumps(index))
    train(features, tmp_path / "other", code=2)
    assert "index.json is damaged" in capsys.readouterr().err
    (features / "checksums.json").unlink()
    train(features, tmp_path / "other", code=2)
    assert (
        "were made with tokenizer '000000000000000000000000', and config.tokenizer" in capsys.readouterr().err
    )
    train(features, tmp_path / "other", "--config.data.cut_captions=0.5", code=2)
    (features / "index.json").write_text(json.dumps({**index, "features": older}))
    capsys.readouterr()
    train(features, tmp_path / "older", "--config.train.steps=1")
    assert "are rounded to bfloat16, as older versions stored them" in capsys.readouterr().err


def test_mistakes_are_named(shards, tmp_path, capsys):
    train(shards, tmp_path, "--config.data.min_sides=5", code=2)
    assert "did you mean config.data.min_side?" in capsys.readouterr().err
    ignored = [
        "--config.data.source=emoji_captions",
        "--config.data.min_side=9",
        "--config.data.cut_captions=0.5",
    ]
    train(shards, tmp_path, *ignored, code=2)
    assert "data.min_side, data.cut_captions: for prepared shards only" in capsys.readouterr().err
    train(tmp_path / "nothing", tmp_path, code=2)
    assert "has no index.json" in capsys.readouterr().err
    assert main(["prepare", "--source", f"records:{shards}", "--features", "configs/t2i.py:debug"]) == 2
    assert "--features needs --out" in capsys.readouterr().err
