import dataclasses
import resource
import signal
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_state import CONFIG, DATA, OPTIMISER, assert_equal, make_state

from infinity_jax.checkpoints import keeping
from infinity_jax.checkpoints.run import Checkpointer
from infinity_jax.errors import UserError
from infinity_jax.training import state as train_state


@pytest.fixture
def saved(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=2)
    checkpointer.save(5, make_state(), DATA, CONFIG)
    checkpointer.wait()
    yield checkpointer
    checkpointer.close()


def test_round_trip(saved):
    state, data = saved.restore(jax.tree.map(jnp.zeros_like, make_state()))
    assert_equal(state, make_state())
    assert jax.tree.structure(state) == jax.tree.structure(make_state())
    assert data == DATA and saved.config() == CONFIG


def test_shapes_alone_are_enough_to_restore(saved):
    state, _ = saved.restore(jax.eval_shape(make_state))
    assert_equal(state, make_state())


def test_only_the_newest_are_kept(saved):
    for step in (6, 7):
        saved.save(step, make_state(), DATA, CONFIG)
    saved.wait()
    assert saved.latest_step() == 7
    saved.restore(make_state(), 6)
    with pytest.raises(UserError, match=r"no checkpoint of step 5 .*\[6, 7\]"):
        saved.restore(make_state(), 5)


def test_model_alone_is_the_average_where_there_is_one(saved, tmp_path):
    assert_equal(saved.restore_params(make_state().params), make_state().ema_params)
    plain = Checkpointer(tmp_path / "plain")
    plain.save(1, make_state(ema=False), DATA, CONFIG)
    plain.wait()
    assert_equal(plain.restore_params(make_state().params), make_state().params)


def test_another_models_checkpoint_names_the_first_parameter_that_differs(saved):
    with pytest.raises(UserError, match=r"another model: params/a/kernel is \(4, 3\) there and \(4, 5\)"):
        saved.restore(make_state(5))
    with pytest.raises(UserError, match=r"params/b/bias is nothing there and \(2,\)"):
        saved.restore(make_state(extra=True))
    with pytest.raises(UserError, match=r"ema_params/a/kernel is \(4, 3\) there and nothing"):
        saved.restore(make_state(ema=False))
    with pytest.raises(UserError, match=r"a/kernel is \(4, 3\) there and \(4, 5\)"):
        saved.restore_params(make_state(5).params)


def test_unfinished_checkpoint_is_never_taken_but_named(saved, tmp_path, caplog):
    saved.close()
    unfinished = tmp_path / "9.orbax-checkpoint-tmp"
    (unfinished / "state").mkdir(parents=True)
    with caplog.at_level("WARNING"):
        again = Checkpointer(tmp_path, keep=2)
    assert f"incomplete checkpoint {unfinished}" in caplog.text
    assert again.latest_step() == 5
    assert_equal(again.restore(make_state())[0], make_state())
    again.close()


def test_a_checkpoint_holds_what_was_saved_though_its_buffers_are_used_again(tmp_path):
    """The state is donated to the next step while its checkpoint is still being written."""
    change = jax.jit(lambda state: jax.tree.map(lambda x: 1 - 3 * x, state), donate_argnums=0)
    params = {"w": jax.random.normal(jax.random.key(0), (500, 500))}
    state = train_state.create(params, OPTIMISER, True)
    expected = {0: jax.tree.map(np.array, state)}
    checkpointer = Checkpointer(tmp_path)
    for step in range(1, 10):
        checkpointer.save(step - 1, state, DATA, CONFIG)
        state = change(state)
        expected[step] = jax.tree.map(np.array, state)
    for step in range(9):
        assert_equal(checkpointer.restore(jax.eval_shape(lambda: expected[0]), step)[0], expected[step])
    checkpointer.close()


@pytest.mark.parametrize(
    ("metric", "values", "kept"),
    [
        ("validation_loss", [3.0, 1.0, 2.0, None, 2.5, 1.5, float("nan"), 4.0], [2, 4, 7, 8]),
        ("reconstruction_kid", [3.0, 1.0, 2.0, None, 2.5, 1.5, float("nan"), 4.0], [2, 4, 7, 8]),
        ("validation_psnr", [3.0, 1.0, 2.0, None, 2.5, 1.5, float("nan"), 2.0], [1, 4, 7, 8]),
    ],
)
def test_the_newest_every_fourth_and_the_best_are_kept(tmp_path, metric, values, kept):
    def opened():
        return Checkpointer(tmp_path, keep=2, keep_every=4, keep_best=metric)

    def save(steps):
        checkpointer = opened()
        for step in steps:
            value = values[step - 1]
            checkpointer.save(step, make_state(), DATA, CONFIG, None if value is None else {metric: value})
        checkpointer.close()

    save(range(1, 4))
    save(range(4, 9))  # another start knows the numbers of the one before
    assert sorted(int(folder.name) for folder in tmp_path.iterdir() if folder.name.isdecimal()) == kept


@pytest.mark.parametrize(
    ("metric", "best"),
    [
        *((name, 1.0) for name in ("loss", "kid", "effnet_kid", "fid", "validation_lpips", "bit_error_rate")),
        *((name, 2.0) for name in ("validation_psnr", "bit_accuracy", "fidelity")),
    ],
)
def test_of_a_loss_a_distance_or_an_error_less_is_better(metric, best):
    assert max(({metric: value} for value in (1.0, 2.0)), key=keeping.score(metric)) == {metric: best}


def test_missing_and_empty_folders_are_explained(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Checkpointer(tmp_path / "none", read_only=True)
    with pytest.raises(UserError, match="no complete checkpoint"):
        Checkpointer(tmp_path, read_only=True).restore(make_state())


# The array writer's other threads find that their caller is gone.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_refused_write_is_explained_and_earlier_checkpoints_stay(saved, tmp_path):
    """A limit on the size of files makes the system refuse a write, as a full disk does."""
    big = train_state.create({"w": jax.random.normal(jax.random.key(0), (500, 500))}, OPTIMISER, True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        saved.save(6, big, DATA, CONFIG)
        with pytest.raises(
            UserError, match=r"(?s)could not save.*File too large.*up to step 5 are intact.*Make room"
        ):
            while any(thread.name == "save_finalize" for thread in threading.enumerate()):
                saved.check()
            saved.check()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.glob("6*"))
    assert_equal(saved.restore(make_state())[0], make_state())
    saved.save(6, make_state(), DATA, CONFIG)
    saved.wait()
    assert saved.latest_step() == 6


@dataclasses.dataclass
class Pair:
    """A state that is no TrainState, with an optional part."""

    params: Any
    extra: Any = None


jax.tree_util.register_dataclass(Pair, ["params", "extra"], [])


def test_a_state_is_any_dataclass_and_its_optional_parts_may_be_missing(tmp_path):
    plain, full = Pair({"w": jnp.ones(2)}), Pair({"w": jnp.ones(2)}, {"v": jnp.zeros(3)})
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, plain, DATA, CONFIG)
    checkpointer.save(2, full, DATA, CONFIG)
    checkpointer.wait()
    assert_equal(checkpointer.restore(plain, 1)[0], plain)
    assert_equal(checkpointer.restore(full, 2)[0], full)
    for target, step in ((full, 1), (plain, 2)):
        with pytest.raises(UserError, match=r"another run, with or without extra: extra/v is "):
            checkpointer.restore(target, step)
    checkpointer.close()
