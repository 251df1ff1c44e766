"""Which scales of a picture the tokenizer trains on, and what those cost that none uses."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax.scales import dense_schedule, make_schedule
from infinity_jax.training.tokenizer_losses import quantizer_loss
from infinity_jax.training.tokenizer_step import (
    TrainingScales,
    training_scales,
)


def test_each_picture_keeps_its_first_and_last_scale_and_others_by_chance():
    scales = training_scales("dense", make_schedule("64px"), drop=0.3, short=0)
    assert scales.schedule.sizes == tuple((n, n) for n in range(1, 9))
    kept = np.asarray(scales.draw_kept(jax.random.key(0), jnp.int32(3), batch=400))
    assert kept[:, (0, -1)].all()
    assert (abs(kept[:, 1:-1].mean(0) - 0.7) < 0.1).all()
    assert not np.array_equal(kept, scales.draw_kept(jax.random.key(0), jnp.int32(4), batch=400))


def test_half_of_the_pictures_use_a_short_schedule():
    scales = training_scales("short", make_schedule("0.25M"), drop=0.5, short=7)
    kept = np.asarray(scales.draw_kept(jax.random.key(0), jnp.int32(0), batch=600))
    counts = collections.Counter(kept.sum(1).tolist())
    assert counts.keys() == {7, 10} and abs(counts[7] / 600 - 0.5) < 0.1
    assert kept[:, (0, -1)].all()
    short = kept[kept.sum(1) == 7]
    assert (abs(short[:, 1:-1].mean(0) - 5 / 8) < 0.15).all()


def test_a_schedule_no_longer_than_the_short_one_is_whole():
    scales = training_scales("short", make_schedule("0.06M"), drop=0.5, short=7)
    assert scales.draw_kept(jax.random.key(0), jnp.int32(0), batch=20).all()


def test_a_schedule_of_one_or_two_scales_is_whole():
    for scale_count in (1, 2):
        scales = TrainingScales(dense_schedule(scale_count), drop=0.99, short=2)
        assert scales.draw_kept(jax.random.key(0), jnp.int32(0), batch=5).shape == (5, scale_count)
        assert scales.draw_kept(jax.random.key(0), jnp.int32(0), batch=5).all()


@pytest.mark.parametrize("quantizer", ["bsq", "lfq"])
def test_a_scale_that_no_picture_uses_costs_nothing(quantizer):
    z = jax.random.normal(jax.random.key(0), (2, 3, 3, 8))
    loss, gradient = jax.value_and_grad(quantizer_loss)(z, quantizer, kept_B=jnp.zeros(2, bool))
    assert np.isfinite(loss) and not gradient.any()
    first, alone = (
        quantizer_loss(x, quantizer, kept_B=kept)
        for x, kept in ((z, jnp.array([True, False])), (z[:1], None))
    )
    np.testing.assert_allclose(first, alone, rtol=1e-6)
