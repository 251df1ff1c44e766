import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from infinity_jax.errors import UserError
from infinity_jax.training import optim
from infinity_jax.training import state as train_state


def test_learning_rate_warms_up_and_ends_at_the_final_fraction():
    config = optim.OptimConfig(learning_rate=1.0, warmup_steps=4, schedule="cosine", final_fraction=0.1)
    rate = optim.learning_rate(config, 20)
    np.testing.assert_allclose([rate(s) for s in range(5)], [0.25, 0.5, 0.75, 1.0, 1.0])
    assert rate(20) == pytest.approx(0.1)
    rates = [float(rate(s)) for s in range(4, 21)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("warmup_steps", [0, 1, 3])
def test_constant_rate_stays(warmup_steps):
    rate = optim.learning_rate(optim.OptimConfig(learning_rate=0.5, warmup_steps=warmup_steps), 10)
    assert [float(rate(s)) for s in range(warmup_steps, 10)] == [0.5] * (10 - warmup_steps)


def test_only_matrices_that_are_not_exempt_are_decayed():
    params = {
        "blocks": {"kernel": jnp.ones((2, 3, 3)), "bias": jnp.ones(3)},
        "head": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
        "start": jnp.ones((1, 3)),
    }
    decayed = optim.decayed(params, lambda name: name == "start")
    assert decayed == {
        "blocks": {"kernel": True, "bias": False},
        "head": {"kernel": True, "bias": False},
        "start": False,
    }
    # With zero gradients nothing but the decay moves a parameter.
    config = optim.OptimConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    optimiser = optim.make_optimiser(config, 10, lambda name: name == "start")
    updates: Any = optimiser.update(jax.tree.map(jnp.zeros_like, params), optimiser.init(params), params)[0]
    assert float(updates["head"]["kernel"][0, 0]) == pytest.approx(-0.05)
    assert not updates["head"]["bias"].any() and not updates["start"].any()


def test_the_first_moment_can_be_kept_in_bfloat16():
    """The memory is what the config says, a step is nearly the same, and the other moment stays float32."""
    params = {"w": jnp.zeros((4, 4))}
    grads = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)), jnp.float32)}
    steps = {}
    for dtype, size in (("float32", 16), ("bfloat16", 14)):
        config = optim.OptimConfig(learning_rate=0.1, warmup_steps=0, first_moment_dtype=dtype)
        optimiser = optim.make_optimiser(config, 10)
        state = train_state.create(params, optimiser, ema=True)
        assert (
            config.state_bytes == size and dataclasses.replace(config, ema_decay=0.0).state_bytes == size - 4
        )
        kept = sum(x.nbytes for x in jax.tree.leaves(state) if x.ndim == 2)
        assert kept == size * 16
        gathered = dataclasses.replace(config, accumulate=2)
        with_sum = train_state.create(params, optim.make_optimiser(gathered, 10), ema=True)
        assert gathered.state_bytes * 16 == sum(x.nbytes for x in jax.tree.leaves(with_sum) if x.ndim == 2)
        for _ in range(3):
            state = train_state.apply_gradients(state, grads, optimiser, 0.9)
        assert {x.dtype.name for x in jax.tree.leaves(state.opt_state) if x.ndim == 2} == {"float32", dtype}
        steps[dtype] = np.asarray(state.params["w"])
    np.testing.assert_allclose(steps["bfloat16"], steps["float32"], rtol=0.02)
    assert (steps["bfloat16"] != steps["float32"]).any()


def test_gradients_are_clipped_by_their_global_norm():
    params = {"w": jnp.zeros((2, 2))}
    optimiser = optim.make_optimiser(optim.OptimConfig(clip=1.0), 10)
    huge, one = ({"w": jnp.full((2, 2), size)} for size in (1e6, 0.5))
    updates: list[Any] = [optimiser.update(grads, optimiser.init(params), params)[0] for grads in (huge, one)]
    np.testing.assert_allclose(updates[0]["w"], updates[1]["w"], rtol=1e-6)


def test_average_follows_the_parameters_with_a_decay_that_warms_up():
    optimiser = optax.sgd(1.0)
    state = train_state.create({"w": jnp.zeros(1)}, optimiser, ema=True)
    mean = 0.0
    for step in range(30):
        state = train_state.apply_gradients(state, {"w": -jnp.ones(1)}, optimiser, ema_decay=0.6)
        decay = min(0.6, (1 + step) / (10 + step))
        mean = decay * mean + (1 - decay) * (step + 1)
        assert float(state.ema_params["w"][0]) == pytest.approx(mean, rel=1e-5)
    assert int(state.step) == 30


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e30])
def test_a_step_whose_gradient_is_not_finite_changes_nothing_but_the_counts(number):
    """The norm of gradients of 1e30 is infinite in float32: clipped by it they would be zero."""
    optimiser = optim.make_optimiser(optim.OptimConfig(), 10)
    state = train_state.create({"w": jnp.ones((2, 2)), "b": jnp.ones(2)}, optimiser, ema=True)
    good = jax.tree.map(jnp.ones_like, state.params)
    bad = {**good, "w": good["w"].at[1, 1].set(number)}
    step = jax.jit(lambda state, grads: train_state.apply_gradients(state, grads, optimiser, 0.9))
    state = step(state, good)
    counts = []
    for grads in (bad, bad, good, bad):
        new = step(state, grads)
        if grads is bad:
            for part in ("params", "opt_state", "ema_params"):
                jax.tree.map(np.testing.assert_array_equal, getattr(new, part), getattr(state, part))
        else:
            assert (new.params["w"] != state.params["w"]).all()
        state = new
        counts.append((int(state.step), int(state.skipped.steps), int(state.skipped.in_a_row)))
    assert counts == [(2, 1, 1), (3, 2, 2), (4, 2, 0), (5, 3, 1)]


def test_gradients_of_several_steps_make_one_update():
    """Parameters and average after 2 x 3 steps are those of 2 steps with the mean gradients, and nothing moves between.

    A step that is skipped is passed over, and the rate follows the run's steps.
    """
    config = optim.OptimConfig(learning_rate=0.1, warmup_steps=4, schedule="cosine", clip=0.5)
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    several = optim.make_optimiser(dataclasses.replace(config, accumulate=3), 12)
    # Warm-up and end of the schedule come at the run's step 4 and 12: 4/3 and 4 updates.
    rates = [float(optim.learning_rate(config, 12)(3 * update)) for update in (0, 1)]
    draws = np.random.default_rng(0).normal(size=(6, 2, 2))
    grads = [{"w": jnp.asarray(x, jnp.float32), "b": jnp.asarray(x[0], jnp.float32)} for x in draws]
    bad = {"w": jnp.full((2, 2), jnp.nan), "b": jnp.ones(2)}
    state = train_state.create(params, several, ema=True)
    step = jax.jit(lambda state, grads: train_state.apply_gradients(state, grads, several, 0.9))
    ends = []
    for grad in [*grads[:2], bad, *grads[2:]]:
        new = step(state, grad)
        if (new.params["w"] == state.params["w"]).all():
            jax.tree.map(np.testing.assert_array_equal, new.ema_params, state.ema_params)
        else:
            ends.append(new)
        state = new
    assert len(ends) == 2 and (int(state.step), int(state.skipped.steps)) == (7, 1)

    expected = train_state.create(params, optim.make_optimiser(config, 12), ema=True)
    for update, rate in enumerate(rates):
        mean = jax.tree.map(lambda *x: sum(x) / 3, *grads[3 * update : 3 * update + 3])
        constant = dataclasses.replace(config, learning_rate=rate, warmup_steps=0, schedule="constant")
        expected = train_state.apply_gradients(expected, mean, optim.make_optimiser(constant, 12), 0.9)
        for part in ("params", "ema_params"):
            ours, theirs = getattr(ends[update], part), getattr(expected, part)
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), ours, theirs)


def test_without_an_average_none_is_kept():
    optimiser = optax.sgd(1.0)
    state = train_state.create({"w": jnp.zeros(1)}, optimiser, ema=False)
    assert train_state.apply_gradients(state, {"w": jnp.ones(1)}, optimiser, 0.9).ema_params is None


@pytest.mark.parametrize(
    "wrong",
    [{"schedule": "straight"}, {"learning_rate": 0.0}, {"clip": -1.0}, {"b2": 1.0}, {"warmup_steps": -1}],
)
def test_wrong_values_are_refused_by_name(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        optim.OptimConfig(**wrong)


def test_an_exponential_schedule_holds_and_then_falls_by_the_same_factor_every_step():
    config = optim.OptimConfig(
        learning_rate=1.0, warmup_steps=0, schedule="exponential", hold=0.5, final_fraction=0.01
    )
    rates = [float(optim.learning_rate(config, 11)(step)) for step in range(11)]
    np.testing.assert_allclose(rates, [1.0] * 6 + [0.01 ** (k / 5) for k in range(1, 6)], rtol=1e-5)
    with pytest.raises(UserError, match="final_fraction above 0"):
        optim.learning_rate(dataclasses.replace(config, final_fraction=0.0), 11)


def test_a_bent_schedule_needs_a_place_for_its_bend():
    config = optim.OptimConfig(
        learning_rate=1.0, warmup_steps=0, schedule="bent", hold=0.5, final_fraction=0.2
    )
    rates = [float(optim.learning_rate(config, 5)(step)) for step in range(5)]
    np.testing.assert_allclose(rates, [1.0, 0.9, 0.8, 0.5, 0.2], rtol=1e-6)
    with pytest.raises(UserError, match="hold above 0"):
        optim.learning_rate(dataclasses.replace(config, hold=0.0), 5)
