"""The quantiser and the pyramid; their numbers are compared with the release's in test_golden.py."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import bsq, pyramid
from infinity_jax.training import tokenizer_losses
from infinity_jax.training.tokenizer_losses import QuantizerWeights

SCHEDULE = ScaleSchedule(((1, 1), (2, 3), (4, 5), (7, 9)), (7, 9))


@pytest.fixture(scope="module")
def features():
    return jax.random.normal(jax.random.key(0), (2, *SCHEDULE.last, 16))


def test_running_sum_is_the_sum_of_the_codes(features):
    quantised = pyramid.quantise(features, SCHEDULE)
    codes = pyramid.sum_of_codes(quantised.symbols, SCHEDULE.last)
    np.testing.assert_allclose(codes, quantised.running_sum_BHWd, atol=1e-6)


def test_entropy_is_finite_where_a_mean_leaves_the_unit_interval():
    z = jnp.ones((3, 8)) / 8**0.5
    value, gradient = jax.value_and_grad(lambda z: tokenizer_losses.quantizer_loss(z, "bsq"))(z)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def brute_force_entropies(z, group, inverse_temperature):
    """By the definition, in float64: soft assignment to every code of each group of bits, a softmax over distances."""
    z = np.asarray(z, np.float64)
    d = z.shape[1]
    per_sample = codebook = 0.0
    for start in range(0, d, group):
        signs = np.array(list(itertools.product([-1.0, 1.0], repeat=group))) / d**0.5
        distances = ((z[:, None, start : start + group] - signs) ** 2).sum(-1)
        weights = np.exp(-inverse_temperature * (distances - distances.min(1, keepdims=True)))
        p = weights / weights.sum(1, keepdims=True)
        per_sample += -(p * np.log(p)).sum(1).mean()
        codebook += -(p.mean(0) * np.log(p.mean(0))).sum()
    return per_sample, codebook


@pytest.mark.parametrize(
    ("d", "group"), [(4, 1), (4, 4), (6, 1), (6, 2), (6, 3), (6, 6), (8, 1), (8, 4), (8, 8)]
)
def test_bsq_entropies_in_groups_equal_brute_force(d, group):
    z = jax.random.normal(jax.random.key(d), (40, d)) + 0.3
    z /= jnp.linalg.norm(z, axis=-1, keepdims=True)
    # Less than in training, so that bits are soft and groups differ.
    for inverse_temperature in (2.0, 10.0):
        got = tokenizer_losses.bsq_entropies(z, inverse_temperature, group)
        want = brute_force_entropies(z, group, inverse_temperature)
        np.testing.assert_allclose(got, want, rtol=2e-5)


def test_groups_of_dependent_bits_have_less_entropy():
    signs = jnp.array([[1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, -1.0]]) / 2
    one, all_bits = (tokenizer_losses.bsq_entropies(signs, group=group)[1] for group in (1, 4))
    np.testing.assert_allclose([one, all_bits], [4 * np.log(2), np.log(2)], rtol=1e-5)


@pytest.mark.parametrize("group", [0, 3, 5, 32])
def test_a_group_that_does_not_fit_the_bits_is_refused(group):
    with pytest.raises(UserError, match="use one of 1, 2, 4, 8, 16"):
        tokenizer_losses.quantizer_loss(jnp.ones((2, 32)), "bsq", QuantizerWeights(group=group))
    with pytest.raises(UserError, match="leave it at 1"):
        tokenizer_losses.quantizer_loss(jnp.ones((2, 8)), "lfq", QuantizerWeights(group=group))


def test_lfq_entropy_equals_the_brute_force_table():
    z = jax.random.normal(jax.random.key(0), (5, 3)) * 0.1
    codes = np.array([[int(bit) * 2 - 1 for bit in f"{i:03b}"] for i in range(8)], np.float32)
    p = np.asarray(jax.nn.softmax(2 * np.asarray(z) @ codes.T, -1), np.float64)
    per_sample, codebook = tokenizer_losses.lfq_entropies(z, inverse_temperature=1.0)
    np.testing.assert_allclose(per_sample, -(p * np.log(p)).sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(codebook, -(p.mean(0) * np.log(p.mean(0))).sum(), rtol=1e-5)


def test_lfq_entropy_refuses_vocabularies_that_fit_no_memory():
    with pytest.raises(UserError, match="use quantizer='bsq'"):
        tokenizer_losses.lfq_entropies(jnp.zeros((1, 32)))


@pytest.mark.parametrize("bits", [14, 16, 18, 20, 24, 32, 64])
@pytest.mark.parametrize("quantizer", ["bsq", "lfq"])
def test_codes_have_the_size_of_their_quantiser_and_zero_is_negative(bits, quantizer):
    codes = bsq.to_codes(bsq.to_bits(jnp.zeros((2, bits))), quantizer)
    np.testing.assert_allclose(codes, -1.0 if quantizer == "lfq" else -(bits**-0.5), rtol=1e-6)


def test_a_dropped_scale_adds_nothing_to_the_picture_that_drops_it(features):
    only_last = jnp.arange(SCHEDULE.n_scales) == SCHEDULE.n_scales - 1
    alone = pyramid.quantise(features, ScaleSchedule(SCHEDULE.sizes[-1:], SCHEDULE.last)).running_sum_BHWd
    whole = pyramid.quantise(features, SCHEDULE).running_sum_BHWd
    keep_BK = jnp.ones((len(features), SCHEDULE.n_scales), bool).at[1].set(only_last)
    dropped = pyramid.quantise(features, SCHEDULE, keep_BK=keep_BK).running_sum_BHWd
    np.testing.assert_array_equal(dropped[1], alone[1])
    np.testing.assert_array_equal(dropped[0], whole[0])


def test_detached_residuals_block_the_gradient_between_scales(features):
    gradients = [
        jax.grad(
            lambda f, d=detach: jnp.sum(
                pyramid.quantise(f, SCHEDULE, detach_residuals=d).running_sum_BHWd ** 2
            )
        )(features)
        for detach in (True, False)
    ]
    assert not np.allclose(gradients[0], gradients[1])
