"""Drawn bits follow their probabilities, and differ between scales and seeds."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers.drawing import draw_settings

from infinity_jax.sampling.bits import draw_bits


def test_drawn_bits_follow_the_probabilities():
    logits = jnp.array([0.0, 2.0, -3.0, 8.0])
    difference = jnp.broadcast_to(logits, (4, 5000, 4))
    seeds = jnp.arange(4, dtype=jnp.uint32)

    def share(tau, top_p):
        settings = draw_settings(seeds, tau, top_p)
        return np.asarray(draw_bits(difference, settings).mean((0, 1)))

    np.testing.assert_allclose(share(1, 1), jax.nn.sigmoid(logits), atol=0.01)
    np.testing.assert_allclose(share(0.5, 1), jax.nn.sigmoid(logits / 0.5), atol=0.01)
    # At top_p 0.9 what has at most 10% is never drawn; both sides of the third bit (4.7%) and the fourth.
    np.testing.assert_allclose(share(1, 0.9)[[0, 1]], jax.nn.sigmoid(logits[:2]), atol=0.01)
    np.testing.assert_array_equal(share(1, 0.9)[[2, 3]], [0, 1])
    np.testing.assert_array_equal(share(0, 1), [0, 1, 0, 1])


def test_draws_of_scales_and_seeds_are_different():
    logits = jnp.zeros((2, 64, 4))
    first, second = (np.asarray(draw_bits(logits, draw_settings([1, 2], scale=k))) for k in (0, 1))
    assert 0.3 < np.mean(first[0] == first[1]) < 0.7
    assert 0.3 < np.mean(first == second) < 0.7
