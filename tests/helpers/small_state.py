"""A small training state, and what a checkpoint of it holds beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from infinity_jax.training import state as train_state

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
