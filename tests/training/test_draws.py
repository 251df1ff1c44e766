"""What a training step draws: each rate as it is stated, and nothing twice for scales, pictures, layers and steps."""

import collections
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.scales import ScaleSchedule, make_schedule
from infinity_jax.training import correction
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.tokenizer_step import TokenizerLossConfig, TrainingScales
from infinity_jax.training.transformer_step import LossConfig, corrected_inputs, draw_examples

# Scales of one size, so that their draws can be compared.
ALIKE = ScaleSchedule(((8, 8),) * 3, (8, 8))
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def flips_KBn():
    """Flips of 3 scales of 60 pictures of 4096 bits each."""
    draw = jax.jit(
        lambda key: correction.draw_flips(key, ALIKE, 60, 64, CorrectionConfig(p=0.3, scales=1000))
    )
    return np.stack([np.asarray(flips).reshape(60, -1) for flips in draw(KEY)])


def test_every_flip_rate_from_zero_to_the_largest_is_drawn():
    """128 pictures of 16384 bits: a deviation of each is a seventh of a hundredth, or less."""
    schedule = ScaleSchedule(((16, 16),), (16, 16))
    draw = jax.jit(lambda key: correction.draw_flips(key, schedule, 128, 64, CorrectionConfig(p=0.03))[0])
    rates_B = np.asarray(draw(KEY)).mean((1, 2, 3)) * 100
    assert (abs(rates_B - np.round(rates_B)) < 0.5).all()
    counts = collections.Counter(np.round(rates_B).astype(int).tolist())
    # 32 of 128 each; six deviations are 29.
    assert counts.keys() == {0, 1, 2, 3} and min(counts.values()) > 12


def test_rates_are_hundredths_up_to_the_largest_and_all_as_likely(monkeypatch):
    rates = []
    monkeypatch.setattr(
        jax.random, "bernoulli", lambda key, p, shape: rates.append(p) or jnp.zeros(shape, bool)
    )
    correction.draw_flips(KEY, ScaleSchedule(((1, 1),), (1, 1)), 20000, 1, CorrectionConfig(p=0.6))
    values, counts = np.unique(np.round(np.ravel(rates[0]) * 100), return_counts=True)
    np.testing.assert_array_equal(values, np.arange(61))
    assert abs(counts - 20000 / 61).max() < 6 * np.sqrt(20000 / 61)


def test_each_scale_of_each_picture_has_its_own_rate_and_its_own_flips(flips_KBn):
    rates_KB = flips_KBn.mean(-1)
    assert (rates_KB.max(1) > 0.25).all() and (rates_KB.min(1) < 0.05).all()
    for a, b in itertools.combinations(range(3), 2):
        assert abs(np.corrcoef(rates_KB[a], rates_KB[b])[0, 1]) < 0.5
        # Independent bits are flipped together as often as chance has it, nested ones as often as the rarer of both.
        together_B = (flips_KBn[a] & flips_KBn[b]).mean(-1)
        assert abs((together_B - rates_KB[a] * rates_KB[b]).mean()) < 0.005
    first, second = flips_KBn[:, ::2], flips_KBn[:, 1::2]
    expected = first.mean(-1) * second.mean(-1)
    assert abs(((first & second).mean(-1) - expected).mean()) < 0.005


def test_only_the_first_scales_flip_where_so_few_are_asked_for():
    flips = correction.draw_flips(KEY, ALIKE, 8, 64, CorrectionConfig(p=0.3, scales=2))
    assert [bool(of_scale.any()) for of_scale in flips] == [True, True, False]


@pytest.fixture(scope="module")
def inputs_of_steps():
    """(inputs, labels) of two pictures that are the same, at some steps."""
    schedule, tokenizer = ScaleSchedule(((2, 2), (4, 4), (4, 4)), (4, 4)), TokenizerConfig(bits=8)
    features = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 4, 4, 8)), (2, 4, 4, 8))
    make = jax.jit(
        lambda key, step: corrected_inputs(key, step, features, schedule, CorrectionConfig(p=1.0), tokenizer)
    )
    return [
        jax.tree.map(np.asarray, make(key, step))
        for key, step in ((KEY, 0), (KEY, 1), (KEY, 1), (jax.random.key(6), 1))
    ]


def test_every_step_and_run_and_picture_has_its_own_flips(inputs_of_steps):
    first, second, again, other_run = inputs_of_steps
    jax.tree.map(np.testing.assert_array_equal, second, again)
    for a, b in ((first, second), (second, other_run)):
        assert (a[0] != b[0]).mean() > 0.2 and (a[1] != b[1]).mean() > 0.02
    inputs, labels = first
    assert (inputs[0] != inputs[1]).mean() > 0.2 and (labels[0] != labels[1]).mean() > 0.02


MODEL = TransformerConfig(layers=3, width=64, heads=4, bits=8, drop_path=0.5)


def draws(step: int, batch: int = 3000, key=KEY, **changes):
    config = dataclasses.replace(LossConfig(), **changes)
    return jax.tree.map(np.asarray, draw_examples(key, step, batch, MODEL, config))


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.0])
def test_so_many_captions_are_dropped(rate):
    assert draws(0, caption_drop=rate)["drop"].mean() == pytest.approx(rate, abs=0.03)


def test_the_defaults_are_the_published_ones():
    """docs/spec.md sections 2 to 5."""
    assert CorrectionConfig() == CorrectionConfig(p=0.3, scales=13, requantise=True)
    assert LossConfig() == LossConfig(token_weights="by_scale", label_smoothing=0.0, caption_drop=0.1)
    loss = TokenizerLossConfig()
    assert (loss.scales, loss.scale_drop, loss.short_scales) == ("dense", 0.5, 7)


def test_paths_are_dropped_the_more_the_deeper_and_the_rest_makes_up_for_it():
    factors_BN2 = draws(0)["path_factors"]
    for layer, rate in enumerate((0.0, 0.25, 0.5)):
        for part in range(2):
            factors_B = factors_BN2[:, layer, part]
            kept_B = factors_B > 0
            assert kept_B.mean() == pytest.approx(1 - rate, abs=0.05)
            np.testing.assert_allclose(factors_B[kept_B], 1 / (1 - rate), rtol=1e-6)
            assert factors_B.mean() == pytest.approx(1, abs=0.1)


def test_paths_and_captions_are_dropped_independently():
    drawn = draws(0, caption_drop=0.5)
    kept_nB = np.stack([drawn["drop"], *(drawn["path_factors"] > 0)[:, 1:].reshape(3000, -1).T])
    correlations = np.corrcoef(kept_nB)
    assert abs(correlations - np.eye(5)).max() < 0.1


def test_every_step_and_run_drops_others():
    first, second, again, other_run = draws(0), draws(1), draws(1), draws(1, key=jax.random.key(6))
    jax.tree.map(np.testing.assert_array_equal, second, again)
    for a, b in ((first, second), (second, other_run)):
        # 18% of captions differ where a tenth of either is dropped; of the last layer's paths half.
        assert (a["drop"] != b["drop"]).mean() == pytest.approx(0.18, abs=0.05)
        assert (a["path_factors"] != b["path_factors"])[:, -1].mean() == pytest.approx(0.5, abs=0.05)


SCALES = {
    "dense": (TrainingScales(make_schedule("64px"), drop=0.5), 0.5),
    # Half of the pictures, of which each drops 2 of the 6 scales between the first and the last.
    "short": (TrainingScales(ScaleSchedule(ALIKE.sizes[:1] * 8, (8, 8)), short=6), 1 / 6),
}


@pytest.mark.parametrize(("scales", "rate"), SCALES.values(), ids=SCALES)
def test_every_step_and_run_and_picture_drops_other_scales(scales, rate):
    keep = jax.jit(lambda key, step: scales.draw_kept(key, step, 1000))
    first, second, again = (np.asarray(keep(KEY, jnp.int32(step))) for step in (0, 1, 1))
    other_run = np.asarray(keep(jax.random.key(6), jnp.int32(1)))
    np.testing.assert_array_equal(second, again)
    np.testing.assert_allclose(first[:, 1:-1].mean(0), 1 - rate, atol=0.08)
    assert first[:, 0].all() and first[:, -1].all()
    chance = 2 * rate * (1 - rate)
    for a, b in ((first, second), (second, other_run), (first[::2], first[1::2])):
        assert (a != b)[:, 1:-1].mean() == pytest.approx(chance, abs=0.06)
    middle = np.corrcoef(first[:, 1:-1].T) - np.eye(first.shape[1] - 2)
    # A short schedule drops a fixed number, so its scales are not independent, but no two are dropped always together.
    assert abs(middle).max() < (0.15 if rate == 0.5 else 0.5)
