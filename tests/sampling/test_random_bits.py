"""The random numbers behind bits: known words, probabilities, independence of neighbours."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.drawing import draw_settings

from infinity_jax.sampling import bits

draw_bits = jax.jit(bits.draw_bits)
thresholds = jax.jit(bits.thresholds, static_argnames="shape_BNd")


def test_dead_zone_draws_the_likelier_value():
    difference = jnp.linspace(-6, 6, 1000).reshape(1, 1000, 1) + jnp.zeros((1, 1000, 64))
    drawn = np.asarray(draw_bits(difference, draw_settings([0], tau=0.7, top_p=0.97)))
    probability = np.asarray(jax.nn.sigmoid(difference / jnp.float32(0.7)))
    less_likely = np.minimum(probability, 1 - probability)
    dead, rare = less_likely <= 0.03 - 1e-6, (less_likely > 0.03 + 1e-6) & (less_likely < 0.05)
    np.testing.assert_array_equal(drawn[dead], np.asarray(difference > 0)[dead])
    assert (drawn != np.asarray(difference > 0))[rare].any()


def test_random_words_are_those_of_threefry():
    # Known answers of Random123, and jax's own.
    zeros, ones = jnp.zeros(1, jnp.uint32), jnp.full(1, 2**32 - 1, jnp.uint32)
    words = [int(word[0]) for key in (zeros, ones) for word in bits.threefry2x32((key, key), (key, key))]
    assert words == [0x6B200159, 0x99BA4EFE, 0x1CB996FC, 0xBB002BE7]
    key, counter = jnp.array([3, 4], jnp.uint32), jnp.arange(20, dtype=jnp.uint32)
    ours = jnp.concatenate(bits.threefry2x32((key[0], key[1]), (counter[:10], counter[10:])))
    np.testing.assert_array_equal(ours, jax.extend.random.threefry_2x32(key, counter))


# Chi-square values that a right draw exceeds once in 10^5 tests, at one degree of freedom and at 255.
CHI_1, CHI_255 = 19.51, 361.6


def chi_square(ones: float, n: int, probability: float) -> float:
    """Of so many ones among n bits."""
    return (ones - n * probability) ** 2 / (n * probability * (1 - probability))


@pytest.mark.parametrize("probability", [0.5, 0.1, 0.9, 0.01, 0.731, 0.0005])
def test_a_million_bits_follow_their_probability(probability):
    difference = jnp.full((4, 4096, 64), np.log(probability / (1 - probability)), jnp.float32)
    drawn = draw_bits(difference, draw_settings(np.arange(4), scale=9))
    assert drawn.size > 10**6
    assert chi_square(float(drawn.sum()), drawn.size, probability) < CHI_1


def test_thresholds_are_uniform():
    logistic = np.asarray(thresholds((1, 8192, 128), draw_settings([11])), np.float64)
    counts, _ = np.histogram(1 / (1 + np.exp(-logistic)), 256, (0, 1))
    expected = logistic.size / 256
    assert ((counts - expected) ** 2 / expected).sum() < CHI_255
    assert np.isfinite(logistic).all()


@pytest.mark.parametrize("axis", ["scale", "picture", "token", "bit"])
def test_neighbours_are_independent(axis):
    set_KBNd = np.stack(
        [thresholds((16, 256, 64), draw_settings(np.arange(16), scale=k)) > 0 for k in range(4)]
    )
    place = ["scale", "picture", "token", "bit"].index(axis)
    lines = np.moveaxis(set_KBNd, place, 0).reshape(set_KBNd.shape[place], -1)
    for distance in {1, 2, len(lines) // 2, len(lines) - 1}:
        equal = lines[distance:] == lines[:-distance]
        assert chi_square(equal.sum(), equal.size, 0.5) < CHI_1, distance
        # Nor is any one line like another: 6 standard deviations.
        assert np.abs(equal.mean(1) - 0.5).max() < 3 / np.sqrt(equal.shape[1]), distance
