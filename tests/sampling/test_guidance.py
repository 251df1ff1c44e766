"""Rows of a picture, and settings of each scale and picture."""

import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax.config import SampleConfig
from infinity_jax.errors import UserError
from infinity_jax.sampling import guidance
from infinity_jax.sampling.guidance import Rows


def test_a_picture_s_rows_lie_side_by_side():
    conditional, unconditional = jnp.arange(6.0).reshape(3, 2), -jnp.arange(6.0).reshape(3, 2)
    both = guidance.interleave(conditional, unconditional)
    np.testing.assert_array_equal(both[:, 1], [1, -1, 3, -3, 5, -5])
    np.testing.assert_array_equal(guidance.separate(both, 2), [conditional, unconditional])
    np.testing.assert_array_equal(guidance.separate(conditional, 1), [conditional])
    shared = guidance.interleave(conditional, unconditional[:1])
    np.testing.assert_array_equal(shared[:, 1], [1, -1, 3, -1, 5, -1])
    np.testing.assert_array_equal(guidance.interleave(unconditional[:1]), unconditional[:1])


def test_the_mix_goes_from_one_through_the_other():
    conditional, unconditional = jnp.array([3.0, 5.0]), jnp.array([1.0, 6.0])
    for cfg, expected in ((1.0, [3, 5]), (0.0, [1, 6]), (2.0, [5, 4])):
        np.testing.assert_allclose(guidance.mix(conditional, unconditional, jnp.float32(cfg)), expected)


def test_rows_that_run():
    both, tree = guidance.interleave(jnp.arange(3.0), jnp.arange(3.0) + 10), {"x": jnp.arange(6.0)}
    np.testing.assert_array_equal(Rows(2, 1).select(both), [0, 1, 2])
    np.testing.assert_array_equal(Rows(2, 1).restore(jnp.arange(2.0)), [0, 0, 1, 1])
    np.testing.assert_array_equal(Rows(2, 2).repeat(jnp.arange(2.0)), [0, 0, 1, 1])
    np.testing.assert_array_equal(Rows(2, 1).repeat(jnp.arange(2.0)), [0, 1])
    assert Rows(2, 2).select(tree) is tree and Rows(1, 1).restore(tree) is tree


def test_numbers_of_each_picture_and_scale():
    settings = [
        SampleConfig(cfg=3.0, tau=(1.0, 0.5, 0.0), top_p=0.9),
        SampleConfig(cfg=5.0, guidance="pyramid", tau=0.7),
    ]
    numbers = guidance.numbers(settings, 3, 4)
    np.testing.assert_allclose(numbers.cfg_BK, [[3, 3, 3], [3, 3, 3], [1, 3, 5], [1, 3, 5]])
    np.testing.assert_allclose(numbers.tau_BK, [[1, 0.5, 0]] * 2 + [[0.7] * 3] * 2, rtol=1e-6)
    np.testing.assert_allclose(numbers.top_p_B, [0.9, 0.9, settings[1].top_p, settings[1].top_p], rtol=1e-6)
    part = numbers.part([2, 0])
    np.testing.assert_allclose(part.cfg_BK, [[1, 3, 5], [3, 3, 3]])
    np.testing.assert_allclose(part.top_p_B, numbers.top_p_B[[2, 0]])


@pytest.mark.parametrize("wrong", [-1.0, (1.0, 2.0, -0.1), float("nan"), float("inf")])
def test_negative_and_infinite_settings_are_refused(wrong):
    with pytest.raises(UserError, match="finite and not negative"):
        guidance.per_scale(wrong, 3, "tau")
    np.testing.assert_array_equal(guidance.per_scale(0.0, 3, "tau"), [0, 0, 0])


def test_pyramid_guidance_has_one_end():
    with pytest.raises(UserError, match="takes one cfg, where it ends; got 2 values"):
        guidance.strengths("pyramid", (1.0, 2.0), 2)
