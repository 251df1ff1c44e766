"""Checkpoints from before the channels of queries and keys changed their order: they still give the same model."""

import contextlib
import dataclasses
import json
from unittest import mock

import jax
import numpy as np
import optax
import pytest
from helpers.systems import write_system
from safetensors.numpy import load_file, save_file

from infinity_jax.checkpoints import folder as disk
from infinity_jax.checkpoints import pretrained, rotary
from infinity_jax.checkpoints.run import Checkpointer
from infinity_jax.errors import UserError
from infinity_jax.runtime import trees
from infinity_jax.tools.convert.convert import to_torch
from infinity_jax.training import state as train_state
from infinity_jax.transformer.rope2d import to_halves, to_neighbours

OPTIMISER = optax.adam(0.1)
MOVED = {
    "blocks/self_attention/query/kernel",
    "blocks/self_attention/query/bias",
    "blocks/self_attention/key/kernel",
}


def old_order(params):
    """Parameters as versions before kept them, written apart from what reads them."""

    def of_leaf(path, x):
        return to_neighbours(x) if trees.parameter_name(path) in MOVED else x

    return jax.tree_util.tree_map_with_path(of_leaf, params)


def as_written_before(folder):
    """Turns an exported folder into what versions before wrote."""
    values = json.loads((folder / disk.CONFIG).read_text())
    del values[rotary.KEY]
    (folder / disk.CONFIG).write_text(json.dumps(values))
    weights = folder / disk.WEIGHTS["transformer"]
    arrays = load_file(weights)
    assert arrays.keys() >= MOVED
    arrays |= {name: np.ascontiguousarray(to_neighbours(arrays[name])) for name in MOVED}
    save_file(arrays, weights)
    (folder / "checksums.json").unlink()


@pytest.fixture
def system(tmp_path):
    write_system(tmp_path / "system")
    return tmp_path / "system"


def test_neighbours_and_halves():
    np.testing.assert_array_equal(to_halves(np.arange(8)), [0, 2, 4, 6, 1, 3, 5, 7])
    x = np.arange(48).reshape(2, 3, 8)
    np.testing.assert_array_equal(to_neighbours(to_halves(x)), x)


def test_a_folder_from_before_is_the_same_model(system, tmp_path):
    now = pretrained.load_model(system).params
    to_torch(str(tmp_path / "now.pth"), str(system), "transformer")
    as_written_before(system)
    jax.tree.map(np.testing.assert_array_equal, pretrained.load_model(system).params, now)
    to_torch(str(tmp_path / "before.pth"), str(system), "transformer")
    assert (tmp_path / "now.pth").read_bytes() == (tmp_path / "before.pth").read_bytes()
    pretrained.export(str(system), tmp_path / "again", "float32")
    assert disk.read_config(tmp_path / "again")[rotary.KEY] == rotary.HALVES
    jax.tree.map(np.testing.assert_array_equal, pretrained.load_model(tmp_path / "again").params, now)


def test_an_unknown_order_is_refused(system):
    values = json.loads((system / disk.CONFIG).read_text())
    (system / disk.CONFIG).write_text(json.dumps(values | {rotary.KEY: "thirds"}))
    with pytest.raises(UserError, match=r"rotary_pairs is 'thirds'.*Use the version that wrote it"):
        pretrained.load_model(system)


def make_state(params):
    """A state after one step, so that its average and moments are not those of the parameters."""
    state = train_state.create(params, OPTIMISER, True)
    grads = jax.tree.map(lambda x: x * x + 1, params)
    return train_state.apply_gradients(state, grads, OPTIMISER, 0.5)


@pytest.fixture
def run_from_before(system, tmp_path):
    """A checkpoint in the old order that says nothing about it, and the state that it holds."""
    params = pretrained.load_model(system).params
    with mock.patch.object(rotary, "MARK", {}), contextlib.closing(Checkpointer(tmp_path / "run")) as writer:
        writer.save(1, make_state(old_order(params)), {"seed": 0, "next_step": 1, "examples": 8}, {})
        writer.wait()
    with contextlib.closing(Checkpointer(tmp_path / "run", read_only=True)) as reader:
        yield reader, make_state(params)


@pytest.mark.long
def test_a_run_from_before_goes_on_with_average_and_moments(run_from_before):
    reader, expected = run_from_before
    found, _ = reader.restore(jax.eval_shape(lambda: expected))
    for field in dataclasses.fields(expected):
        jax.tree.map(np.testing.assert_array_equal, getattr(found, field.name), getattr(expected, field.name))
    jax.tree.map(np.testing.assert_array_equal, reader.restore_params(expected.params), expected.ema_params)


def test_what_is_saved_now_is_read_as_it_is(system, tmp_path):
    state = make_state(pretrained.load_model(system).params)
    with contextlib.closing(Checkpointer(tmp_path / "run")) as checkpointer:
        checkpointer.save(1, state, {"seed": 0, "next_step": 1, "examples": 8}, {})
        checkpointer.wait()
        found, data = checkpointer.restore(state)
    assert data == {"seed": 0, "next_step": 1, "examples": 8}
    jax.tree.map(np.testing.assert_array_equal, found, state)
