"""The quantiser and the pyramid; their numbers are compared with the release's in test_golden.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import bsq, bsq_losses, pyramid

SCHEDULE = ScaleSchedule(((1, 1), (2, 3), (4, 5), (7, 9)), (7, 9))


@pytest.fixture(scope="module")
def features():
    return jax.random.normal(jax.random.key(0), (2, *SCHEDULE.last, 16))


def test_running_sum_is_the_sum_of_the_codes(features):
    quantised = pyramid.quantise(features, SCHEDULE)
    codes = pyramid.sum_of_codes(quantised.bits, SCHEDULE.last)
    np.testing.assert_allclose(codes, quantised.running_sum_BHWd, atol=1e-6)


def test_entropy_is_finite_where_a_mean_leaves_the_unit_interval():
    z = jnp.ones((3, 8)) / 8**0.5
    value, gradient = jax.value_and_grad(lambda z: bsq_losses.quantizer_loss(z, "bsq"))(z)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_lfq_entropy_equals_the_brute_force_table():
    z = jax.random.normal(jax.random.key(0), (5, 3)) * 0.1
    codes = np.array([[int(bit) * 2 - 1 for bit in f"{i:03b}"] for i in range(8)], np.float32)
    p = np.asarray(jax.nn.softmax(2 * np.asarray(z) @ codes.T, -1), np.float64)
    per_sample, codebook = bsq_losses.lfq_entropies(z, inverse_temperature=1.0)
    np.testing.assert_allclose(per_sample, -(p * np.log(p)).sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(codebook, -(p.mean(0) * np.log(p.mean(0))).sum(), rtol=1e-5)


def test_lfq_entropy_refuses_vocabularies_that_fit_no_memory():
    with pytest.raises(UserError, match="use quantizer='bsq'"):
        bsq_losses.lfq_entropies(jnp.zeros((1, 32)))


@pytest.mark.parametrize("bits", [14, 16, 18, 20, 24, 32, 64])
@pytest.mark.parametrize("quantizer", ["bsq", "lfq"])
def test_codes_have_the_size_of_their_quantiser_and_zero_is_negative(bits, quantizer):
    codes = bsq.to_codes(bsq.to_bits(jnp.zeros((2, bits))), quantizer)
    np.testing.assert_allclose(codes, -1.0 if quantizer == "lfq" else -(bits**-0.5), rtol=1e-6)


def test_a_dropped_scale_adds_nothing(features):
    only_last = jnp.arange(SCHEDULE.n_scales) == SCHEDULE.n_scales - 1
    alone = pyramid.quantise(features, ScaleSchedule(SCHEDULE.sizes[-1:], SCHEDULE.last))
    dropped = pyramid.quantise(features, SCHEDULE, keep_K=only_last)
    np.testing.assert_array_equal(dropped.running_sum_BHWd, alone.running_sum_BHWd)


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
