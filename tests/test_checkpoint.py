import resource
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from infinity_jax import train_state
from infinity_jax.checkpoint import Checkpointer
from infinity_jax.errors import UserError

OPTIMISER = optax.adam(0.1)
DATA = {"seed": 3, "next_step": 5, "examples": 40}
CONFIG = {"model": {"sizes": [1, 2], "name": "x"}}


def make_state(width: int = 3, ema: bool = True, extra: bool = False) -> train_state.TrainState:
    params = {"a": {"kernel": jnp.arange(4.0 * width).reshape(4, width)}}
    if extra:
        params["b"] = {"bias": jnp.ones(2)}
    state = train_state.create(params, OPTIMISER, ema)
    return train_state.apply_gradients(state, jax.tree.map(jnp.ones_like, params), OPTIMISER, 0.5)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture
def saved(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=2)
    checkpointer.save(5, make_state(), DATA, CONFIG)
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
    assert saved.latest_step() == 7
    saved.restore(make_state(), 6)
    with pytest.raises(UserError, match=r"no checkpoint of step 5 .*\[6, 7\]"):
        saved.restore(make_state(), 5)


def test_model_alone_is_the_average_where_there_is_one(saved, tmp_path):
    assert_equal(saved.restore_params(make_state().params), make_state().ema_params)
    plain = Checkpointer(tmp_path / "plain")
    plain.save(1, make_state(ema=False), DATA, CONFIG)
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


def test_unfinished_checkpoint_is_never_taken(saved, tmp_path):
    saved.close()
    (tmp_path / "9.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    again = Checkpointer(tmp_path, keep=2)
    assert again.latest_step() == 5
    assert_equal(again.restore(make_state())[0], make_state())


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
        with pytest.raises(
            UserError, match=r"(?s)could not save.*File too large.*up to step 5 are intact.*Make room"
        ):
            saved.save(6, big, DATA, CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.glob("6*"))
    assert_equal(saved.restore(make_state())[0], make_state())
    saved.save(6, make_state(), DATA, CONFIG)
    assert saved.latest_step() == 6
