"""The bit loss and its metrics, against plain sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.training.transformer_losses import bit_loss, token_weights

SCHEDULE = ScaleSchedule(((1, 1), (2, 2), (3, 2)), (3, 2))


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    logits = jnp.asarray(random.standard_normal((2, 11, 4, 2)) * 3, jnp.float32)
    return logits, jnp.asarray(random.integers(0, 2, (2, 11, 4)), jnp.int8)


def test_token_weights():
    weights = token_weights(SCHEDULE, "by_scale")
    assert weights.sum() == pytest.approx(1, rel=1e-6)
    # Scales of 1, 4 and 6 tokens.
    np.testing.assert_allclose(weights / weights[0], [1] + [1 / 2] * 4 + [6**-0.5] * 6, rtol=1e-6)
    np.testing.assert_allclose(token_weights(SCHEDULE, "uniform"), 1 / 11, rtol=1e-6)
    with pytest.raises(UserError, match="by_scale"):
        token_weights(SCHEDULE, "by_size")


@pytest.mark.parametrize("weights", ["uniform", "by_scale"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_is_the_weighted_cross_entropy(batch, weights, smoothing):
    logits, bits = batch
    log_p = jax.nn.log_softmax(logits)
    target = jax.nn.one_hot(bits, 2) * (1 - smoothing) + smoothing / 2
    expected = -(target * log_p).sum(-1).mean((0, 2)) @ token_weights(SCHEDULE, weights)
    loss, metrics = bit_loss(logits, bits, SCHEDULE, weights, smoothing)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert metrics["loss_per_scale"].shape == (3,)


def test_metrics(batch):
    logits, bits = batch
    metrics = bit_loss(logits, bits, SCHEDULE)[1]
    right = logits.argmax(-1) == bits
    scale = np.array(SCHEDULE.scale_of_token)
    for k in range(3):
        assert float(metrics["bit_accuracy_per_scale"][k]) == pytest.approx(right[:, scale == k].mean())
        tokens = right.all(-1)[:, scale == k].mean()
        assert float(metrics["token_accuracy_per_scale"][k]) == pytest.approx(tokens)
    assert float(metrics["bit_accuracy"]) == pytest.approx(right.mean())
    means = metrics["loss_per_scale"]
    assert float(bit_loss(logits, bits, SCHEDULE)[0]) == pytest.approx(
        float(means @ jnp.array([1, 4, 6]) / 11)
    )


def test_equal_logits_predict_zero():
    metrics = bit_loss(jnp.zeros((1, 11, 4, 2)), jnp.zeros((1, 11, 4), jnp.int8), SCHEDULE)[1]
    assert float(metrics["bit_accuracy"]) == 1
    metrics = bit_loss(jnp.zeros((1, 11, 4, 2)), jnp.ones((1, 11, 4), jnp.int8), SCHEDULE)[1]
    assert float(metrics["bit_accuracy"]) == 0


def test_huge_logits_stay_finite(batch):
    logits, bits = batch
    gradient = jax.grad(lambda x: bit_loss(x, bits, SCHEDULE)[0])(logits * 1e4)
    assert np.isfinite(gradient).all()
