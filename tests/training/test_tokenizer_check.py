"""Before a run starts: whether its tokenizer can show the pictures, and whether `init_from` knows its bits."""

import dataclasses
import functools
import logging
import re
import shlex

import jax
import numpy as np
import pytest
from helpers import systems
from PIL import Image

from infinity_jax import config_files
from infinity_jax.checkpoints import opened, pretrained
from infinity_jax.checkpoints.trained import TrainedTokenizer
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.training import hooks, run_config
from infinity_jax.training.tokenizer_check import check_tokenizer, remedy


@pytest.fixture
def log(caplog):
    logging.getLogger("absl").propagate = True
    caplog.set_level(logging.INFO)
    return caplog


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    for i in range(30):
        kind = ("reds", "blues")[i % 2]
        (folder / kind).mkdir(exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (24, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / kind / f"{i}.png")
    return folder


@functools.cache
def fresh():
    return systems.initial_params(Tokenizer(systems.TOKENIZER), 16, 0)


def tokenizer(seed):
    params = jax.tree.map(lambda x: x + 0.1 * seed * np.sign(np.sin(100 * x)), fresh())
    return TrainedTokenizer(systems.TOKENIZER, params, "32px", {})


def read(folder, *changes):
    own = (f"data.source=folder:{folder}", "data.scales=32px", "model.bits=12", "data.fit=pad", *changes)
    return run_config.read_config(config_files.load("emoji:debug", [f"--config.{change}" for change in own]))


def test_poor_reconstruction_is_told_with_a_command_that_is_understood(folder, tmp_path, log):
    check_tokenizer(read(folder), tokenizer(0), tmp_path / "run")
    measured, warning = log.records[-2:]
    assert re.search(r"gives 27 of the pictures back with a PSNR of \d+\.\d dB", measured.getMessage())
    assert warning.levelno == logging.WARNING and "below 21: no picture" in warning.getMessage()
    command = re.search(r"infinity-jax (train-tokenizer .*?);", warning.getMessage())
    assert command is not None
    words = shlex.split(command[1])
    assert words[-2:] == ["--workdir", str(tmp_path / "run_tokenizer")]
    overrides = [word for word in words if word.startswith("--config.")]
    config = config_files.load(
        "finetune:tokenizer", overrides
    )  # it is the system's own that takes another config
    assert (config.data.source, config.data.fit, config.data.scales) == (f"folder:{folder}", "pad", "32px")


def test_the_command_for_a_tokenizer_of_codes_leaves_no_scale_out(folder, tmp_path):
    codes = dataclasses.replace(systems.TOKENIZER, quantizer="vq", codes=8)
    words = remedy(read(folder).data, "runs/vq", TrainedTokenizer(codes, {}, "32px", {}), tmp_path)
    overrides = [word for word in shlex.split(words.partition(";")[0]) if word.startswith("--config.")]
    config = config_files.load("finetune:tokenizer", overrides)
    assert (config.model.quantizer, config.model.codes) == ("vq", 8)
    assert (config.loss.scales, config.loss.short_scales) == ("short", 4)


def test_the_bundled_tokenizer_is_not_measured_on_its_own_data(log, tmp_path):
    run = run_config.read_config(config_files.load("emoji:debug"))
    check_tokenizer(run, pretrained.load_tokenizer(opened.BUNDLED), tmp_path)
    assert "PSNR" not in log.text


def test_weights_that_were_trained_on_other_bits_are_told(folder, tmp_path, log):
    pretrained.save_tokenizer(tmp_path / "before", tokenizer(0))
    run = read(folder, f"train.init_from={tmp_path / 'before'}", "tokenizer=runs/mine")
    check_tokenizer(run, tokenizer(0), tmp_path)
    assert "other" not in log.text
    check_tokenizer(run, tokenizer(1), tmp_path)
    assert re.search(
        r"another tokenizer than runs/mine: \d+% of the bits of 27 pictures are the same", log.text
    )


def test_until_its_first_checkpoint_a_run_takes_another_tokenizer(folder, tmp_path, log):
    workdir = tmp_path / "run"
    for seed in (0, 1):
        pretrained.save_tokenizer(tmp_path / str(seed), tokenizer(seed))
        kept = run_config.keep_tokenizer(read(folder, f"tokenizer={tmp_path / str(seed)}"), workdir)
        assert kept.fingerprint == tokenizer(seed).fingerprint
        assert pretrained.load_tokenizer(workdir / "tokenizer").fingerprint == kept.fingerprint


def test_a_run_that_has_begun_keeps_its_tokenizer_and_says_so(folder, tmp_path, log, monkeypatch):
    workdir = tmp_path / "run"
    for seed in (0, 1):
        pretrained.save_tokenizer(tmp_path / str(seed), tokenizer(seed))
    run_config.keep_tokenizer(read(folder, f"tokenizer={tmp_path / '0'}"), workdir)
    monkeypatch.setattr(run_config.start, "newest_step", lambda workdir: 10)
    for path, told in (("0", False), ("gone", False), ("1", True)):
        log.clear()
        kept = run_config.keep_tokenizer(read(folder, f"tokenizer={tmp_path / path}"), workdir)
        assert kept.fingerprint == tokenizer(0).fingerprint
        assert ("goes on with that" in log.text) == told


def test_a_sheet_shows_held_back_captions_first_and_none_twice():
    def caption(index: int, held_back: bool) -> str:
        return f"held back {max(index, 1)}" if held_back else f"trained {index}"

    captions, held = hooks.sheet_captions(caption, 5, 2, seed=0)
    assert held == 4 and len(captions) == len(set(captions)) == 6
    assert [text[:4] for text in captions] == ["held"] * 4 + ["trai"] * 2
    assert len(hooks.sheet_captions(caption, 500, 500, seed=0)[0]) == hooks.SHEET_PICTURES
