"""Guidance that is projected, and temperatures that are found: against plain forms of the published formulas."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arbitrary_params import arbitrary_params
from helpers.drawing import sampler_inputs

from infinity_jax.config import SampleConfig, TokenizerConfig, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.sampling import head_bits, hooks, logits, sampler
from infinity_jax.sampling.bits import DrawSettings, LinearHead
from infinity_jax.sampling.config import SamplerConfig
from infinity_jax.scales import ScaleSchedule

SCHEDULE = ScaleSchedule(((1, 1), (2, 2), (4, 4)), (4, 4))
MODEL = TransformerConfig(
    layers=1, width=64, heads=2, bits=6, text_channels=32, text_length=8, compute_dtype="float32"
)
TOKENIZER = TokenizerConfig(bits=6, base_width=32, multipliers=(1, 1), encoder_blocks=1, decoder_blocks=1)
CONFIG = SamplerConfig(MODEL, TOKENIZER, SCHEDULE)
CFG = jnp.array([3.0, 1.0, 5.0])


@pytest.fixture(scope="module")
def hidden_and_head():
    draws = np.random.default_rng(0)
    hidden = jnp.asarray(draws.standard_normal((2, 3, 16, 64)), jnp.float32)
    modulation = jnp.asarray(0.1 * draws.standard_normal((3, 2, 2, 64)), jnp.float32)
    weight = jnp.asarray(draws.standard_normal((64, 6)) / 4, jnp.float32)
    return hidden, LinearHead(modulation, weight, jnp.zeros(6))


def plain_apg(conditional, unconditional, cfg, parallel, norm):
    """One picture's scale, in float64, as the paper writes it: vectors in the Euclidean norm."""
    c, u = (np.asarray(x, np.float64).ravel() for x in (conditional, unconditional))
    difference = c - u
    limit = norm * np.sqrt(len(c))
    if norm and np.linalg.norm(difference) > limit:
        difference = difference / np.linalg.norm(difference) * limit
    unit = c / np.linalg.norm(c)
    along = (difference @ unit) * unit
    return (c + (cfg - 1) * (difference - along + parallel * along)).reshape(conditional.shape)


@pytest.mark.parametrize("parallel, norm", [(0.0, 0.0), (0.3, 0.0), (1.0, 0.5), (0.0, 0.7), (0.0, 100.0)])
def test_projected_guidance_is_the_papers(hidden_and_head, parallel, norm):
    hidden, head = hidden_and_head
    conditional = head_bits.guided_logits(hidden[:1], head, CFG)
    unconditional = head_bits.guided_logits(hidden, head, jnp.zeros(3))
    guided, carried = logits.ProjectedGuidance(parallel, norm)(hidden, head, CFG, 2, None)
    assert carried is None
    for i, cfg in enumerate(CFG):
        expected = plain_apg(conditional[i], unconditional[i], float(cfg), parallel, norm)
        np.testing.assert_allclose(guided[i], expected, atol=2e-5)


def test_all_of_the_effect_without_a_limit_is_cfg(hidden_and_head):
    hidden, head = hidden_and_head
    for parallel, norm in ((1.0, 0.0), (1.0, 1e6)):
        guided, _ = logits.ProjectedGuidance(parallel, norm)(hidden, head, CFG, 2, None)
        np.testing.assert_allclose(guided, head_bits.guided_logits(hidden, head, CFG), atol=2e-5)
    # Without an unconditional row there is nothing to guide by.
    alone, _ = logits.ProjectedGuidance(0.0, 0.1)(hidden[:1], head, CFG, 2, None)
    np.testing.assert_array_equal(alone, head_bits.guided_logits(hidden[:1], head, CFG))


def certainty(logits_BNd, tau_B):
    p = 1 / (1 + np.exp(-np.asarray(logits_BNd, np.float64) / np.asarray(tau_B)[:, None, None]))
    return np.maximum(p, 1 - p).mean((1, 2))


def test_the_temperature_makes_bits_as_certain_as_asked():
    drawn = np.random.default_rng(1).standard_normal((4, 50, 6)).astype(np.float32)
    logits_BNd = drawn * np.array([5, 2, 0.1, 5], np.float32)[:, None, None]
    tau = jnp.array([1.0, 0.5, 1.0, 0.0])
    warm = logits.warmed(jnp.asarray(logits_BNd), tau, 0.65)
    found = certainty(logits_BNd, np.maximum(warm, 1e-9))
    np.testing.assert_allclose(found[[0, 1, 3]], 0.65, atol=1e-4)
    # Bits that are less certain keep their temperature.
    assert warm[2] == 1.0 and found[2] < 0.65
    # At most eight times a temperature.
    hot = logits.warmed(jnp.asarray(100 * drawn), jnp.ones(4), 0.5)
    np.testing.assert_allclose(hot, 8.0, rtol=1e-5)


def test_only_the_first_scales_are_warmed(hidden_and_head):
    hidden, head = hidden_and_head
    settings = DrawSettings(jnp.arange(3, dtype=jnp.uint32), jnp.zeros(3), jnp.ones(3), 1)
    draw = logits.LogitDraw.of(dataclasses.replace(CONFIG, bit_confidence=(0.6, 0.6)))
    likely = head_bits.guided_logits(hidden, head, CFG) > 0
    warm, _ = draw(hidden, head, CFG, settings, None)
    assert 0.3 < np.mean(warm == likely) < 0.75  # 0.6 of the bits, within chance
    cold, _ = draw(hidden, head, CFG, dataclasses.replace(settings, scale=2), None)
    np.testing.assert_array_equal(cold, likely)


@functools.partial(jax.jit, static_argnums=0)
def draw(config, params, inputs):
    return sampler.draw(config, params, inputs).bits


def test_the_sampler_takes_them_and_a_picture_does_not_depend_on_others():
    params = arbitrary_params(MODEL, SCHEDULE)
    text = np.random.default_rng(1).standard_normal((3, 5, 32)).astype(np.float32)
    inputs = sampler_inputs(text, np.ones((3, 5), bool), [7, 8, 9], np.full(3, 4), np.ones(3))
    plain = draw(CONFIG, params, inputs)
    changes = {"guidance_parallel": 0.0, "guidance_norm": 0.2, "bit_confidence": (0.6, 0.6)}
    config = dataclasses.replace(CONFIG, **changes)
    changed = draw(config, params, inputs)
    assert any((a != b).any() for a, b in zip(plain, changed, strict=True))
    alone = draw(config, params, inputs._replace(text_BTC=inputs.text_BTC.at[1:].set(0.0)))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), changed, alone)
    # Certain enough bits leave plain sampling as it is.
    sure = dataclasses.replace(CONFIG, bit_confidence=(1.0, 1.0))
    jax.tree.map(np.testing.assert_array_equal, plain, draw(sure, params, inputs))


def test_settings_reach_the_config_and_wrong_ones_are_refused():
    settings = SampleConfig(guidance_parallel=0.5, guidance_norm=2.0, bit_confidence=(0.6,))
    config = SamplerConfig.from_settings(MODEL, TOKENIZER, SCHEDULE, settings)
    chosen = hooks.hooks_of(config).draw_bits
    assert chosen == logits.LogitDraw(logits.ProjectedGuidance(0.5, 2.0), False, (0.6,))
    configs: list[tuple[dict[str, Any], str]] = [
        ({"guidance_parallel": 0.0, "mixed": "features", "feature_layers": (0,)}, "mixed='features'"),
        ({"guidance_norm": 1.0, "mixed": "none"}, "guidance on logits"),
        ({"guidance_norm": 1.0, "reuse_guidance": True, "unguided_scales": (2,)}, "do not go with"),
        ({"bit_confidence": (0.6,) * 4}, "at most one for each of the 3 scales"),
        ({"bit_confidence": (0.6,), "model": dataclasses.replace(MODEL, head="index")}, "head 'bits'"),
    ]
    for wrong, said in configs:
        with pytest.raises(UserError, match=said):
            dataclasses.replace(CONFIG, **wrong)
    values: list[dict[str, Any]] = [
        {"guidance_parallel": 1.5},
        {"guidance_norm": -1.0},
        {"bit_confidence": (0.4,)},
    ]
    for wrong in values:
        with pytest.raises(UserError):
            SampleConfig(**wrong)
