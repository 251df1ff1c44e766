"""Bitwise self-correction against the release with given flips, and its random draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax import correction
from infinity_jax.correction import CorrectionConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import make_schedule


@pytest.mark.parametrize("flipped", [True, False])
def test_inputs_and_labels_equal_the_release(release_bsq, flipped):
    arrays, schedule, features = release_bsq
    masks = [arrays[f"flip_mask_{k}"][:, 0].astype(bool) & flipped for k in range(schedule.n_scales)]
    inputs, labels = correction.self_correction(features, tuple(jnp.asarray(m) for m in masks), schedule)
    prefix = "flip" if flipped else "noflip"
    expected = np.concatenate([arrays[f"{prefix}_gt_bits_{k}"] for k in range(schedule.n_scales)], 1)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_allclose(inputs, arrays[f"{prefix}_x_BLC_wo_prefix"], rtol=2e-5, atol=2e-6)


def test_without_requantising_labels_ignore_the_flips(release_bsq):
    arrays, schedule, features = release_bsq
    masks = tuple(jnp.asarray(arrays[f"flip_mask_{k}"][:, 0].astype(bool)) for k in range(schedule.n_scales))
    inputs, labels = correction.self_correction(features, masks, schedule, requantise=False)
    no_flips = tuple(jnp.zeros_like(mask) for mask in masks)
    clean_inputs, clean_labels = correction.self_correction(features, no_flips, schedule)
    np.testing.assert_array_equal(labels, clean_labels)
    assert not np.allclose(inputs, clean_inputs)


def test_flip_rates_are_the_hundredths_up_to_p():
    schedule = make_schedule("64px")
    draw = jax.jit(
        lambda key: correction.draw_flips(key, schedule, 64, 32, CorrectionConfig(p=0.3, scales=5))
    )
    rates = []
    for seed in range(40):
        flips = draw(jax.random.key(seed))
        assert not flips[5].any()  # beyond the first five scales nothing flips
        rates.append(float(flips[4].mean()))
    # 64 * 36 * 32 bits: the rate is known to about 0.002.
    assert all(abs(rate * 100 - round(rate * 100)) < 0.7 for rate in rates)
    assert 0.1 < np.mean(rates) < 0.2 and min(rates) < 0.05 and max(rates) > 0.25


def test_off_flips_nothing():
    flips = correction.draw_flips(jax.random.key(0), make_schedule("64px"), 2, 16, CorrectionConfig(p=0.0))
    assert not any(f.any() for f in flips)


def test_a_probability_above_one_is_refused():
    with pytest.raises(UserError, match="best is 0"):
        CorrectionConfig(p=30.0)
