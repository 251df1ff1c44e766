"""The sampler: against the plain one, what may not change a picture (test_golden.py: the release's bits)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arbitrary_params import arbitrary_params
from helpers.drawing import for_all, sampler_inputs

from infinity_jax import scales
from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.sampling import bits, guidance, kv_cache, reference, sampler
from infinity_jax.sampling.bits import draw_bits
from infinity_jax.sampling.config import SamplerConfig, SamplerInputs
from infinity_jax.sampling.token_pruning import TokenPruning
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import pyramid, resize
from infinity_jax.tokenizer.bsq import BSQ
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.tools.planning import hlo_costs
from infinity_jax.transformer.transformer import Transformer

SCHEDULE = ScaleSchedule(((1, 1), (2, 2), (3, 2), (4, 4)), (4, 4))
MODEL = TransformerConfig(
    layers=2, width=64, heads=4, bits=6, text_channels=128, text_length=8, compute_dtype="float32"
)
TOKENIZER = TokenizerConfig(bits=6, base_width=32, multipliers=(1, 1), encoder_blocks=1, decoder_blocks=1)
CONFIG = SamplerConfig(MODEL, TOKENIZER, SCHEDULE)


draw = jax.jit(sampler.draw, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def draw_and_differences(config, params, inputs):
    """What is drawn, and each scale's differences of the two logits of a bit [B,N,d]."""
    differences = []

    def seen(difference_BNd, *settings):
        differences.append(difference_BNd)
        return draw_bits(difference_BNd, *settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits, "draw_bits", seen)
        return sampler.draw(config, params, inputs), differences


@pytest.fixture(scope="module")
def params():
    return arbitrary_params(MODEL, SCHEDULE)


@pytest.fixture(scope="module")
def tokenizer_params():
    codes = jnp.zeros((1, *SCHEDULE.last, 6))
    return jax.jit(lambda: Tokenizer(TOKENIZER).init(jax.random.key(0), codes, method="decode"))()["params"]


def inputs_for(text, mask, seeds, **changes) -> SamplerInputs:
    return sampler_inputs(text, mask, seeds, np.full(4, 3), np.ones(4))._replace(**changes)


@pytest.fixture(scope="module")
def inputs():
    text = np.random.default_rng(1).standard_normal((3, 5, 128)).astype(np.float32)
    return inputs_for(text, np.arange(5) < np.array([[5], [2], [3]]), [7, 8, 9])


REFERENCE_CASES = {
    "guided": CONFIG,
    "unguided": dataclasses.replace(CONFIG, mixed="none"),
    "wide": dataclasses.replace(CONFIG, schedule=scales.make_schedule("0.06M", "2:5").prefix(4)),
    "tall": dataclasses.replace(CONFIG, schedule=scales.make_schedule("0.06M", "2:1").prefix(4)),
    "square": dataclasses.replace(CONFIG, schedule=scales.make_schedule("32px")),
    "patchified": dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(MODEL, bits=8),
        tokenizer=dataclasses.replace(TOKENIZER, bits=2, patchify=2),
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("config", REFERENCE_CASES.values(), ids=REFERENCE_CASES)
def test_bits_are_those_of_the_plain_sampler(inputs, config):
    """Several seeds, strengths and temperatures; each scale has its own."""
    params = arbitrary_params(config.model, config.schedule)
    plain = jax.jit(lambda params, inputs: reference.sample_bits(config, params, inputs))
    for seed in (0, 1000):
        settings = inputs._replace(
            seeds_B=inputs.seeds_B + seed,
            cfg_BK=for_all(jnp.linspace(1, 4, config.schedule.n_scales), 3),
            tau_BK=for_all(jnp.linspace(1, 0.4, config.schedule.n_scales), 3),
            top_p_B=jnp.full(3, 0.95, jnp.float32),
        )
        expected, running_sum_BHWd = plain(params, settings)
        drawn = draw(config, params, settings)
        assert 0.1 < np.mean(np.concatenate([x.ravel() for x in expected])) < 0.9
        jax.tree.map(np.testing.assert_array_equal, list(drawn.bits), expected)
        np.testing.assert_allclose(drawn.running_sum_BHWd, running_sum_BHWd, atol=1e-6)


@pytest.mark.long
def test_cached_logits_are_those_of_the_full_pass(params, inputs):
    drawn, differences = draw_and_differences(CONFIG, params, inputs)
    running_sum, full_inputs = jnp.zeros_like(drawn.running_sum_BHWd), []
    for of_scale, size in zip(drawn.bits[:-1], SCHEDULE.sizes[1:], strict=True):
        running_sum = BSQ.add(running_sum, BSQ.look_up(of_scale), 0)
        full_inputs.append(BSQ.next_input(running_sum, size).reshape(3, -1, 6))
    full_inputs = jnp.concatenate(full_inputs, 1)

    @jax.jit
    def full(drop_B):
        arguments = full_inputs, inputs.text_BTC, inputs.mask_BT, SCHEDULE, drop_B
        return Transformer(MODEL).apply({"params": params}, *arguments)

    conditional, unconditional = full(jnp.zeros(3, bool)), full(jnp.ones(3, bool))
    expected = guidance.mix(conditional, unconditional, jnp.float32(3))
    expected = expected[..., 1] - expected[..., 0]
    np.testing.assert_allclose(jnp.concatenate(differences, 1), expected, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [{}, {"unguided_scales": (1, 3)}, {"pruning": TokenPruning(((2, 0.5), (3, 0.25)), (1, 1))}],
    ids=["plain", "unguided", "pruned"],
)
def test_layers_with_weights_of_their_own_draw_the_same(params, inputs, monkeypatch, changes):
    """As of large models on CPUs and GPUs."""
    scanned = dataclasses.replace(CONFIG, **changes)
    # Another config, so that nothing compiled before is used.
    one_by_one = dataclasses.replace(scanned, feature_layers=(-1,))
    _, expected = draw_and_differences(scanned, params, inputs)
    monkeypatch.setattr(kv_cache, "_MANY_BYTES", 0)
    _, found = draw_and_differences(one_by_one, params, inputs)
    np.testing.assert_allclose(jnp.concatenate(found, 1), jnp.concatenate(expected, 1), atol=1e-5)


@pytest.fixture(scope="module")
def pictures(params, tokenizer_params, inputs):
    return np.asarray(sampler.make_sampler(CONFIG)(params, tokenizer_params, inputs))


def test_pictures_are_the_decoded_bits(params, tokenizer_params, inputs, pictures):
    drawn = draw(CONFIG, params, inputs)
    codes = pyramid.sum_of_codes(drawn.bits, SCHEDULE.last)
    decode = functools.partial(Tokenizer(TOKENIZER).apply, method="decode")
    image = jax.jit(decode, static_argnums=2)({"params": tokenizer_params}, codes, CONFIG.decoder_dtype)
    expected = np.floor((np.asarray(image) + 1) / 2 * 255)
    assert pictures.shape == (3, 8, 8, 3) and pictures.dtype == np.uint8
    assert np.abs(pictures - expected).max() <= 1  # of rounding near a whole number
    assert np.mean(pictures == expected) > 0.99


@pytest.mark.long
def test_a_picture_depends_on_its_seed_and_prompt_alone(params, tokenizer_params, inputs, pictures):
    sample = sampler.make_sampler(CONFIG)
    order = np.array([2, 0, 1])
    permuted = jax.tree.map(lambda x: x[order], inputs)
    np.testing.assert_array_equal(sample(params, tokenizer_params, permuted), pictures[order])
    alone = jax.tree.map(lambda x: x[1:2], inputs)
    assert np.abs(np.asarray(sample(params, tokenizer_params, alone), int) - pictures[1:2]).max() <= 1
    other = np.asarray(sample(params, tokenizer_params, inputs._replace(seeds_B=inputs.seeds_B + 100)))
    assert all((other[i] != pictures[i]).any() for i in range(3))


def test_padding_of_the_text_changes_no_bit(params, inputs):
    longer = inputs._replace(
        text_BTC=jnp.pad(inputs.text_BTC, ((0, 0), (0, 3), (0, 0)), constant_values=9.0),
        mask_BT=jnp.pad(inputs.mask_BT, ((0, 0), (0, 3))),
    )
    (a, a_logits), (b, b_logits) = (draw_and_differences(CONFIG, params, each) for each in (inputs, longer))
    jax.tree.map(np.testing.assert_array_equal, a.bits, b.bits)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), a_logits, b_logits)


@pytest.mark.parametrize("cold", range(4))
def test_each_scale_is_drawn_at_its_own_temperature(params, inputs, cold):
    """At temperature 0 the likelier value is always taken; at 100 both are drawn about equally often."""
    given = inputs._replace(tau_BK=for_all(jnp.full(4, 100.0).at[cold].set(0.0), 3))
    drawn, differences = draw_and_differences(CONFIG, params, given)
    for k, (bits_BhwD, difference_BND) in enumerate(zip(drawn.bits, differences, strict=True)):
        likelier = np.asarray(difference_BND > 0).reshape(bits_BhwD.shape)
        assert np.array_equal(bits_BhwD, likelier) == (k == cold)


def test_new_values_do_not_compile_again(params, tokenizer_params, inputs):
    sample = sampler.make_sampler(CONFIG)
    sample(params, tokenizer_params, inputs)
    compiled = sample._cache_size()
    ramp = for_all(jnp.arange(4), 3)
    changed = inputs._replace(
        cfg_BK=ramp, tau_BK=ramp, top_p_B=jnp.full(3, 0.9, jnp.float32), seeds_B=inputs.seeds_B + 1
    )
    sample(params, tokenizer_params, changed)
    assert sample._cache_size() == compiled
    assert sampler.make_sampler(dataclasses.replace(CONFIG)) is sample


@pytest.mark.parametrize(
    "changes",
    [{}, {"mixed": "both", "feature_layers": (0,)}, {"unguided_scales": (3,), "reuse_guidance": True}],
    ids=["logits", "both", "reused"],
)
def test_pictures_with_settings_of_their_own_share_a_batch(params, inputs, changes):
    config = dataclasses.replace(CONFIG, **changes)
    own = inputs._replace(
        cfg_BK=jnp.array([[1.0, 1, 1, 1], [3, 3, 3, 3], [1, 2, 3, 4]]),
        tau_BK=jnp.array([[1.0, 1, 1, 1], [0, 0, 0, 0], [1, 0.8, 0.6, 0.4]]),
        top_p_B=jnp.array([1.0, 1.0, 0.9]),
    )
    together = draw(config, params, own)
    for i in range(3):
        given = {n: jnp.repeat(getattr(own, n)[i : i + 1], 3, 0) for n in ("cfg_BK", "tau_BK", "top_p_B")}
        alike = draw(config, params, own._replace(**given))
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b[i]), alike.bits, together.bits)


@pytest.mark.long
def test_guidance_one_is_none(params, inputs):
    plain = draw(dataclasses.replace(CONFIG, mixed="none"), params, inputs)
    for mixed in ("logits", "features", "both"):
        config = dataclasses.replace(CONFIG, mixed=mixed, feature_layers=(0, 1))
        guided = draw(config, params, inputs._replace(cfg_BK=jnp.ones((3, 4))))
        jax.tree.map(np.testing.assert_array_equal, plain.bits, guided.bits)


@pytest.mark.parametrize("dtype, size", [("float32", 4), ("bfloat16", 2)])
def test_the_cache_holds_all_scales_but_the_last(params, inputs, dtype, size):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, compute_dtype=dtype))

    def last_state(params, inputs):
        params = sampler.rounded(config.model, params)
        state, prepared = sampler.empty_state(config, 3), sampler.prepare(config, params, inputs)
        for k in range(SCHEDULE.n_scales):
            _, state = sampler.draw_scale(config, params, inputs, prepared, state, k)
        return state.caches, state.running_sum_BHWd

    (cache,), running_sum = jax.eval_shape(last_state, params, inputs)
    assert sum(SCHEDULE.tokens[:-1]) == 11  # in places for a multiple of 8
    assert [x.shape for x in cache.past] == [(2, 6, 4, 16, 16)] * 2
    assert {x.dtype.itemsize for x in jax.tree.leaves(cache)} == {size}
    assert running_sum.shape == (3, 4, 4, 6)


@pytest.mark.long
@pytest.mark.parametrize("scanned", [True, False])
def test_rounding_the_parameters_before_changes_nothing(params, inputs, monkeypatch, scanned):
    monkeypatch.setattr(kv_cache, "are_scanned", lambda config: scanned)
    low = dataclasses.replace(MODEL, compute_dtype="bfloat16")
    config = dataclasses.replace(CONFIG, model=low, feature_layers=(int(scanned),))  # compiled for each
    before = sampler.rounded(low, params)
    blocks = (
        before["blocks"] if scanned else jax.tree.map(lambda *of_each: jnp.stack(of_each), *before["blocks"])
    )
    assert blocks["self_attention"]["query_key_value"]["kernel"].shape == (2, 64, 3, 4, 16)
    assert sum(x.size for x in jax.tree.leaves(blocks)) == 2 * 2 * 64 + sum(  # keys get biases
        x.size for x in jax.tree.leaves(params["blocks"])
    )
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, sampler.rounded(low, before), before))
    jax.tree.map(np.testing.assert_array_equal, draw(config, params, inputs), draw(config, before, inputs))


def test_an_unguided_last_scale_draws_with_the_caption_alone(params, inputs):
    config = dataclasses.replace(CONFIG, unguided_scales=(3,))
    given = inputs._replace(cfg_BK=for_all([3.0, 3.0, 3.0, 1.0], 3))
    for a, b in zip(draw(CONFIG, params, given).bits, draw(config, params, given).bits, strict=True):
        np.testing.assert_array_equal(a, b)


def test_unguided_scales_halve_the_work_and_later_scales_go_on(params, inputs):
    def flops(config):
        compiled = jax.jit(sampler.draw, static_argnums=0).lower(config, params, inputs).compile()
        text: Any = compiled.as_text()
        return hlo_costs.costs(text).flops

    unguided = dataclasses.replace(CONFIG, unguided_scales=(1, 3))
    without, guided = flops(dataclasses.replace(CONFIG, mixed="none")), flops(CONFIG)
    # Only 7 of the 27 tokens run twice.
    assert flops(unguided) < without + 0.3 * (guided - without)
    drawn = draw(unguided, params, inputs)
    np.testing.assert_array_equal(drawn.bits[0], draw(CONFIG, params, inputs).bits[0])
    assert np.isfinite(drawn.running_sum_BHWd).all()


@pytest.mark.long
def test_reused_guidance_is_that_of_the_last_guided_scale(params, inputs):
    config = dataclasses.replace(CONFIG, unguided_scales=(3,), reuse_guidance=True)
    drawn, reused = draw_and_differences(config, params, inputs)
    exact, guided = draw_and_differences(CONFIG, params, inputs)
    jax.tree.map(np.testing.assert_array_equal, drawn.bits[:3], exact.bits[:3])
    alone = dataclasses.replace(CONFIG, unguided_scales=(3,))
    _, unguided = draw_and_differences(alone, params, inputs)
    # What the caption changed at 3x2 (cfg 3: a third of what was added twice), resized, is added at 4x4.
    low = draw_and_differences(dataclasses.replace(CONFIG, unguided_scales=(2, 3)), params, inputs)[1][2]
    effect = ((guided[2] - low) / 2).reshape(3, 3, 2, 6)
    expected = unguided[3] + 2 * resize.bilinear(effect, (4, 4)).reshape(3, 16, 6)
    np.testing.assert_allclose(reused[3], expected, atol=1e-3)
    # With guidance of 1 there is nothing to reuse.
    plain = inputs._replace(cfg_BK=jnp.ones((3, 4)))
    jax.tree.map(
        np.testing.assert_array_equal, draw(config, params, plain).bits, draw(CONFIG, params, plain).bits
    )


@pytest.mark.long
def test_bfloat16_draws_close_logits(params, inputs):
    low = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, compute_dtype="bfloat16"))
    (_, exact), (_, rounded) = (draw_and_differences(config, params, inputs) for config in (CONFIG, low))
    # Later scales see other bits as soon as one differs; the first has the same input.
    np.testing.assert_allclose(rounded[0], exact[0], atol=0.1)
