"""The section `train` of a config file: lengths as text, and numbers that must go together."""

import pytest
from helpers import toy_run

from infinity_jax.errors import UserError
from infinity_jax.training import config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(keep_every=7), "multiple of train.checkpoint_every, 5; nearest: 5"),
        (dict(keep_best="validation_loss"), "needs evaluations"),
        (dict(microbatches=3), "batch_size 8 cannot be split into 3"),
        (dict(microbatches=0), "microbatches is 0"),
    ],
)
def test_lengths_and_numbers_that_do_not_go_together(values, message):
    with pytest.raises(UserError, match=message):
        toy_run.config(**values)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        *[(7, 7), ("7", 7), ("7 steps", 7), ("1 step", 1), ("10%", 50), ("2 epochs", 200)],
        *[("0.5 epochs", 50), ("96 examples", 12), ("0", 0), ("0.001%", 1)],
    ],
)
def test_durations(text, steps):
    assert config.in_steps(text, steps=500, batch_size=8, examples=800) == steps


@pytest.mark.parametrize("text", ["soon", "-3", "5 minutes", ""])
def test_durations_that_mean_nothing_are_refused(text):
    with pytest.raises(UserError, match="is not understood"):
        config.in_steps(text, steps=500, batch_size=8, examples=800)


def test_a_runs_length_cannot_be_a_part_of_itself():
    with pytest.raises(UserError, match="'10%' is not understood"):
        config.from_section({"steps": "10%", "batch_size": 8}, 800)


def test_train_section_becomes_steps():
    section = {"steps": "2 epochs", "batch_size": 8, "checkpoint_every": "25%", "log_every": 10}
    train = config.from_section(section, 800)
    assert (train.steps, train.checkpoint_every, train.log_every) == (200, 50, 10)
    with pytest.raises(UserError, match=r"train\.log_evry; did you mean train\.log_every"):
        config.from_section({**section, "log_evry": 1}, 800)
