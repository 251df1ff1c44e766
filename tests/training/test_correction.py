"""Bitwise self-correction and its random draw; test_golden.py compares it with the release for given flips."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax.config import TokenizerConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import make_schedule
from infinity_jax.training import correction
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.transformer_step import corrected_inputs


def test_without_requantising_labels_ignore_the_flips():
    schedule = make_schedule("64px")
    features = jax.random.normal(jax.random.key(0), (2, *schedule.last, 16))
    flips = correction.draw_flips(jax.random.key(1), schedule, 2, 16, CorrectionConfig(p=0.5))
    no_flips = tuple(jnp.zeros_like(mask) for mask in flips)
    correct = jax.jit(lambda flips, requantise: correction.self_correction(
        features, flips, schedule, requantise=requantise), static_argnums=1)  # fmt: skip
    inputs, labels = correct(flips, False)
    clean_inputs, clean_labels = correct(no_flips, True)
    assert labels.shape == (2, schedule.length, 16) and inputs.shape == (2, schedule.offsets[-1] - 1, 16)
    np.testing.assert_array_equal(labels, clean_labels)
    assert not np.allclose(inputs, clean_inputs)
    assert (correct(flips, True)[1] != clean_labels).any()


def test_each_picture_s_flip_rates_are_the_hundredths_up_to_p():
    schedule, config = make_schedule("64px"), CorrectionConfig(p=0.3, scales=5)
    flips = jax.jit(lambda key: correction.draw_flips(key, schedule, 24, 4096, config))(jax.random.key(0))
    assert not flips[5].any()  # beyond the first five scales nothing flips
    rates_B, others_B = (np.asarray(flips[k].mean((1, 2, 3))) for k in (4, 3))
    # 36 * 4096 bits: the rate is known to about 0.001.
    assert (abs(rates_B * 100 - np.round(rates_B * 100)) < 0.5).all()
    assert 0.1 < rates_B.mean() < 0.2 and rates_B.min() < 0.05 and rates_B.max() > 0.25
    assert abs(np.corrcoef(rates_B, others_B)[0, 1]) < 0.6


def test_the_rate_varies_little_for_a_batch_of_many_pictures():
    """So the loss of a step varies little too: experiments/draws_per_picture.py."""
    schedule, config = make_schedule("64px"), CorrectionConfig(p=0.3)
    draw = jax.jit(lambda key: correction.draw_flips(key, schedule, 32, 16, config)[4].mean())
    rates = [float(draw(jax.random.key(seed))) for seed in range(100)]
    # Of one draw 0.31 / sqrt(12) = 0.09, and of 32 a sqrt(32)th of it, 0.016.
    assert 0.012 < np.std(rates) < 0.02


def test_off_flips_nothing():
    flips = correction.draw_flips(jax.random.key(0), make_schedule("64px"), 2, 16, CorrectionConfig(p=0.0))
    assert not any(f.any() for f in flips)


def test_a_probability_above_one_is_refused():
    with pytest.raises(UserError, match=r"p is 30\.0; it must be a number from 0 to 1"):
        CorrectionConfig(p=30.0)


def test_no_running_sum_of_an_earlier_scale_is_kept():
    """At 1024x1024 there are 13 scales; beside the result only a few arrays of the features' size exist at a time."""
    schedule, tokenizer = make_schedule("1M"), TokenizerConfig()
    features = jax.ShapeDtypeStruct((1, *schedule.last, tokenizer.bits), jnp.float32)
    step = jax.jit(
        lambda key, features: corrected_inputs(key, 0, features, schedule, CorrectionConfig(), tokenizer)
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    memory: Any = step.lower(key, features).compile().memory_analysis()
    size = 4 * np.prod(features.shape)
    inputs, labels = (schedule.length - 1) * tokenizer.bits * 4, schedule.length * tokenizer.bits
    assert memory.output_size_in_bytes - inputs - labels < 100
    # The parts that are joined in the end, the flips, and: running sum, residual, and two arrays of a resize.
    assert memory.temp_size_in_bytes < inputs + 2 * labels + 4 * size
