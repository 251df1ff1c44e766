"""Steps whose numbers are not finite: skipped and counted until there are too many, and never saved."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toy_run

from infinity_jax.checkpoints.run import Checkpointer
from infinity_jax.errors import UserError


def broken_at(*bad_steps: int):
    """Batches of which those of some steps, counted from 1, give no finite loss."""

    def batches(first, rows_of):
        for step, batch in enumerate(toy_run.batches(first, rows_of), first + 1):
            yield {**batch, "y": batch["y"] * np.float32(np.nan if step in bad_steps else 1)}

    return batches


@pytest.mark.parametrize(("bad_step", "most", "saved"), [(6, 1, 5), (9, 1, 5), (6, 6, 10), (6, 3, 5)])
def test_too_many_steps_in_a_row_that_are_not_finite_end_the_run(tmp_path, bad_step, most, saved):
    kept = re.escape(str(tmp_path / "checkpoints" / str(saved)))
    last = bad_step + most - 1
    with pytest.raises(
        UserError,
        match=rf"of {most} steps in a row, up to step {last}, were not finite.*{kept}\. .*learning_rate",
    ):
        toy_run.run(tmp_path, batches=broken_at(*range(bad_step, 21)), most_skipped=most)
    reader = Checkpointer(tmp_path / "checkpoints", read_only=True)
    assert reader.latest_step() == saved
    state, _ = reader.restore(toy_run.fresh_state())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_skipped_steps_are_counted_and_the_run_goes_on(tmp_path):
    state = toy_run.run(tmp_path, batches=broken_at(3, 7, 8, 20), most_skipped=3)
    assert int(state.step) == 20 and int(state.skipped.steps) == 4
    written = {line["step"]: (line["skipped_steps"], line["loss"]) for line in toy_run.lines(tmp_path)}
    assert [count for count, _ in written.values()] == [1, 1, 3, 3, 3, 3, 4]
    assert written[3][1] is None and written[18][1] < written[6][1]


def test_a_row_of_skipped_steps_goes_on_after_a_restart(tmp_path):
    batches, message = broken_at(*range(8, 21)), "of 5 steps in a row, up to step 12"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with pytest.raises(UserError, match=message):
        toy_run.run(whole, batches=batches, most_skipped=5)
    toy_run.run(parts, 10, batches=batches, most_skipped=5)
    with pytest.raises(UserError, match=message):
        toy_run.run(parts, batches=batches, most_skipped=5)
    states = [
        Checkpointer(folder / "checkpoints", read_only=True).restore(toy_run.fresh_state(), 10)[0]
        for folder in (whole, parts)
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert int(states[0].skipped.in_a_row) == 3


def test_a_run_from_before_skipped_steps_were_counted_goes_on(tmp_path):
    """Its checkpoints have no such count."""
    undisturbed = toy_run.run(tmp_path / "undisturbed")
    reader = Checkpointer(tmp_path / "undisturbed" / "checkpoints", read_only=True)
    state, data = reader.restore(toy_run.fresh_state(), 15)
    older = Checkpointer(tmp_path / "checkpoints")
    older.save(15, dataclasses.replace(state, skipped=None), data, toy_run.CONFIG)
    older.close()
    jax.tree.map(np.testing.assert_array_equal, toy_run.run(tmp_path), undisturbed)


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
    def step_fn(state, batch, seed_key):
        state, values = toy_run.step_fn(state, batch, seed_key)
        params = jax.tree.map(lambda x: jnp.where(state.step == 10, jnp.inf, x), state.params)
        return dataclasses.replace(state, params=params), values

    with pytest.raises(UserError, match=r"not finite at step 10.*checkpoint of step 5 is kept"):
        toy_run.run(tmp_path, step_fn=step_fn)
    assert Checkpointer(tmp_path / "checkpoints", read_only=True).latest_step() == 5


@pytest.mark.parametrize("name", ["gradient_norm", "adversarial_weight", "a_number_of_any_name"])
def test_every_number_of_a_step_must_be_finite(tmp_path, name):
    def step_fn(state, batch, seed_key):
        state, values = toy_run.step_fn(state, batch, seed_key)
        return state, {**values, name: jnp.where(state.step >= 5, jnp.inf, 1.0)}

    with pytest.raises(UserError, match=f"{name} is inf at step 5; no checkpoint was saved before"):
        toy_run.run(tmp_path, step_fn=step_fn)
