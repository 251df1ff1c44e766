"""What is refused at the start of a run, and what it says first."""

import logging

import pytest
from helpers import toy_run

from infinity_jax import config_files
from infinity_jax.errors import UserError
from infinity_jax.evaluation import main_numbers
from infinity_jax.training import config as train_config
from infinity_jax.training import loop, run_config, summary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("sample.cfg=1,2,3", "cfg has 3 values; give one, or one for each of the 6 scales"),
        ("sample.tau=1,2", "tau has 2 values"),
        ("sample.unguided_scales=9", "there is no scale 9; this schedule has 0 to 5"),
        ("sample.pruning=9:0.5", "pruning: scale 9 cannot be pruned"),
        ("sample.pruning=fast", "pruning"),
        ("sample.reuse_guidance=true", "reuse_guidance needs guidance on logits and some unguided_scales"),
    ],
)
def test_a_sheet_that_cannot_be_drawn_is_refused_before_anything_is_encoded(change, message, tmp_path):
    run = run_config.read_config(config_files.load("emoji:debug", [f"--config.{change}"]))
    with pytest.raises(UserError) as refused:
        run_config.fitting_tokenizer(run, tmp_path)
    assert message in str(refused.value)


def test_the_best_checkpoint_needs_pictures_to_evaluate_on():
    train = toy_run.config(keep_best="validation_loss", evaluate_every=5)
    train_config.check_best(train, "folder:few", 3)
    with pytest.raises(UserError, match="needs a validation split, and 'folder:few' has none; leave it out"):
        train_config.check_best(train, "folder:few", 0)


def test_a_run_says_its_size_first(caplog):
    caplog.set_level(logging.INFO, logger="absl")
    summary.say("a transformer", 7_300_000, (3692, 142), toy_run.config(steps=6000), "runs/a")
    summary.say("a tokenizer", 10, (4, 0), toy_run.config(), "b")
    assert [record.getMessage() for record in caplog.records] == [
        "training a transformer of 7,300,000 parameters on 3,692 pictures (142 for validation): 6,000 steps of 8 "
        "pictures, 13 times each; a checkpoint every 5 steps, in runs/a",
        "training a tokenizer of 10 parameters on 4 pictures (none for validation): 20 steps of 8 pictures, 40 times "
        "each; a checkpoint every 5 steps, in b",
    ]


def test_the_first_steps_tell_how_long_a_run_takes(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="absl")
    monkeypatch.setattr(loop, "_WORTH_SAYING", 0.0)
    toy_run.run(tmp_path, 12)
    said = [record.getMessage() for record in caplog.records if "left" in record.getMessage()]
    assert said[0].endswith(" for the 7 steps left") and "s a step: about 1 s" in said[0]
    # A run that resumes tells again, by its own steps; a short one is not worth a word.
    monkeypatch.setattr(loop, "_WORTH_SAYING", 1000.0)
    caplog.clear()
    toy_run.run(tmp_path / "other", 12)
    assert not [record for record in caplog.records if "steps left" in record.getMessage()]


def test_main_numbers_as_text():
    numbers = {
        "validation_loss": 0.63412,
        "bit_accuracy": 0.8812,
        "psnr": 24.31,
        "kid": None,
        "retrieval_top1": 0.74,
    }
    assert main_numbers.as_text(numbers, main_numbers.CHECKPOINT).splitlines() == [
        "validation loss       0.6341",
        "bit accuracy          88.1%",
        "reconstruction, PSNR  24.31 dB",
        "retrieval, top 1      74.0%",
    ]
    assert main_numbers.as_text({"psnr": 20.0, "lpips": None}, main_numbers.TOKENIZER) == "PSNR  20.00 dB"
