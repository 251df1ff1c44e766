"""The sampler: the cache against the full pass, what may not change a picture (test_golden.py: the release's bits)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arbitrary_params import arbitrary_params

from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.model.transformer import Transformer
from infinity_jax.sampling import guidance, sampler
from infinity_jax.sampling.bits import draw_bits
from infinity_jax.sampling.sampler import SamplerConfig, SamplerInputs
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import bsq, pyramid
from infinity_jax.tokenizer.model import Tokenizer

SCHEDULE = ScaleSchedule(((1, 1), (2, 2), (3, 2), (4, 4)), (4, 4))
MODEL = TransformerConfig(
    layers=2, width=64, heads=4, bits=6, text_channels=128, text_length=8, compute_dtype="float32"
)
TOKENIZER = TokenizerConfig(bits=6, base_width=32, multipliers=(1, 1), encoder_blocks=1, decoder_blocks=1)
CONFIG = SamplerConfig(MODEL, TOKENIZER, SCHEDULE)


draw = jax.jit(sampler.draw, static_argnums=0)


@pytest.fixture(scope="module")
def params():
    return arbitrary_params(MODEL, SCHEDULE)


@pytest.fixture(scope="module")
def tokenizer_params():
    codes = jnp.zeros((1, *SCHEDULE.last, 6))
    return jax.jit(lambda: Tokenizer(TOKENIZER).init(jax.random.key(0), codes, method="decode"))()["params"]


def inputs_for(text, mask, seeds, **changes) -> SamplerInputs:
    inputs = SamplerInputs(
        jnp.asarray(text), jnp.asarray(mask), jnp.asarray(seeds, jnp.uint32),
        jnp.full(4, 3, jnp.float32), jnp.full(4, 1, jnp.float32), jnp.float32(1),
    )  # fmt: skip
    return inputs._replace(**changes)


@pytest.fixture(scope="module")
def inputs():
    text = np.random.default_rng(1).standard_normal((3, 5, 128)).astype(np.float32)
    return inputs_for(text, np.arange(5) < np.array([[5], [2], [3]]), [7, 8, 9])


def test_cached_logits_are_those_of_the_full_pass(params, inputs):
    drawn = draw(CONFIG, params, inputs)
    running_sum, full_inputs = jnp.zeros_like(drawn.running_sum_BHWd), []
    for bits, size in zip(drawn.bits[:-1], SCHEDULE.sizes[1:], strict=True):
        running_sum = pyramid.add_codes(running_sum, bsq.to_codes(bits, "bsq"))
        full_inputs.append(pyramid.next_input(running_sum, size).reshape(3, -1, 6))
    full_inputs = jnp.concatenate(full_inputs, 1)

    @jax.jit
    def full(drop_B):
        arguments = full_inputs, inputs.text_BTC, inputs.mask_BT, SCHEDULE, drop_B
        return Transformer(MODEL).apply({"params": params}, *arguments)

    with_caption, without = full(jnp.zeros(3, bool)), full(jnp.ones(3, bool))
    expected = guidance.mix(with_caption, without, jnp.float32(3))
    np.testing.assert_allclose(jnp.concatenate(drawn.logits, 1), expected, atol=1e-4)


@pytest.fixture(scope="module")
def pictures(params, tokenizer_params, inputs):
    return np.asarray(sampler.make_sampler(CONFIG)(params, tokenizer_params, inputs))


def test_pictures_are_the_decoded_bits(params, tokenizer_params, inputs, pictures):
    drawn = draw(CONFIG, params, inputs)
    codes = pyramid.sum_of_codes(drawn.bits, SCHEDULE.last)
    decode = jax.jit(
        lambda codes: Tokenizer(TOKENIZER).apply({"params": tokenizer_params}, codes, method="decode")
    )
    image = decode(codes)
    expected = np.floor((np.asarray(image) + 1) / 2 * 255)
    assert pictures.shape == (3, 8, 8, 3) and pictures.dtype == np.uint8
    assert np.abs(pictures - expected).max() <= 1  # of rounding near a whole number
    assert np.mean(pictures == expected) > 0.99


def test_a_picture_depends_on_its_seed_and_prompt_alone(params, tokenizer_params, inputs, pictures):
    sample = sampler.make_sampler(CONFIG)
    order = np.array([2, 0, 1])
    permuted = inputs._replace(
        **{name: getattr(inputs, name)[order] for name in ("text_BTC", "mask_BT", "seeds_B")}
    )
    np.testing.assert_array_equal(sample(params, tokenizer_params, permuted), pictures[order])
    alone = inputs._replace(
        **{name: getattr(inputs, name)[1:2] for name in ("text_BTC", "mask_BT", "seeds_B")}
    )
    assert np.abs(np.asarray(sample(params, tokenizer_params, alone), int) - pictures[1:2]).max() <= 1
    other = np.asarray(sample(params, tokenizer_params, inputs._replace(seeds_B=inputs.seeds_B + 100)))
    assert all((other[i] != pictures[i]).any() for i in range(3))


def test_padding_of_the_text_changes_no_bit(params, inputs):
    longer = inputs._replace(
        text_BTC=jnp.pad(inputs.text_BTC, ((0, 0), (0, 3), (0, 0)), constant_values=9.0),
        mask_BT=jnp.pad(inputs.mask_BT, ((0, 0), (0, 3))),
    )
    a, b = draw(CONFIG, params, inputs), draw(CONFIG, params, longer)
    jax.tree.map(np.testing.assert_array_equal, a.bits, b.bits)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), a.logits, b.logits)


def test_new_values_do_not_compile_again(params, tokenizer_params, inputs):
    sample = sampler.make_sampler(CONFIG)
    sample(params, tokenizer_params, inputs)
    compiled = sample._cache_size()
    ramp, top_p = jnp.arange(4, dtype=jnp.float32), jnp.float32(0.9)
    changed = inputs._replace(cfg_K=ramp, tau_K=ramp, top_p=top_p, seeds_B=inputs.seeds_B + 1)
    sample(params, tokenizer_params, changed)
    assert sample._cache_size() == compiled
    assert sampler.make_sampler(dataclasses.replace(CONFIG)) is sample


def test_guidance_one_is_none(params, inputs):
    plain = draw(dataclasses.replace(CONFIG, mixed="none"), params, inputs)
    for mixed in ("logits", "features"):
        config = dataclasses.replace(CONFIG, mixed=mixed, feature_layers=(0, 1))
        guided = draw(config, params, inputs._replace(cfg_K=jnp.ones(4)))
        jax.tree.map(np.testing.assert_array_equal, plain.bits, guided.bits)


def test_the_cache_holds_all_scales_but_the_last(params, inputs):
    del params
    state = sampler._empty_state(CONFIG, 3, 6)
    assert state.keys.shape == state.values.shape == (2, 6, 4, SCHEDULE.length - 16, 16)
    assert state.running_sum_BHWd.shape == (3, 4, 4, 6)


def test_bfloat16_draws_close_logits(params, inputs):
    low = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, compute_dtype="bfloat16"))
    exact, rounded = draw(CONFIG, params, inputs), draw(low, params, inputs)
    # Later scales see other bits as soon as one differs; the first has the same input.
    np.testing.assert_allclose(rounded.logits[0], exact.logits[0], atol=0.1)


def test_drawn_bits_follow_the_probabilities():
    logits = jnp.array([0.0, 2.0, -3.0, 8.0])
    difference = jnp.broadcast_to(jnp.stack([jnp.zeros(4), logits], -1), (4, 5000, 4, 2))
    seeds = jnp.arange(4, dtype=jnp.uint32)

    def share(tau, top_p):
        return np.asarray(draw_bits(difference, seeds, 0, jnp.float32(tau), jnp.float32(top_p)).mean((0, 1)))

    np.testing.assert_allclose(share(1, 1), jax.nn.sigmoid(logits), atol=0.01)
    np.testing.assert_allclose(share(0.5, 1), jax.nn.sigmoid(logits / 0.5), atol=0.01)
    # At top_p 0.9 what has at most 10% is never drawn; both sides of the third bit (4.7%) and the fourth.
    np.testing.assert_allclose(share(1, 0.9)[[0, 1]], jax.nn.sigmoid(logits[:2]), atol=0.01)
    np.testing.assert_array_equal(share(1, 0.9)[[2, 3]], [0, 1])
    np.testing.assert_array_equal(share(0, 1), [0, 1, 0, 1])


def test_draws_of_scales_and_seeds_are_different():
    logits = jnp.zeros((2, 64, 4, 2))
    seeds, one = jnp.array([1, 2], jnp.uint32), jnp.float32(1)
    first, second = (np.asarray(draw_bits(logits, seeds, k, one, one)) for k in (0, 1))
    assert 0.3 < np.mean(first[0] == first[1]) < 0.7
    assert 0.3 < np.mean(first == second) < 0.7


def test_settings_of_each_scale():
    np.testing.assert_array_equal(guidance.per_scale(2.0, 3, "tau"), [2, 2, 2])
    np.testing.assert_array_equal(guidance.strengths("pyramid", 3.0, 5), [1, 1.5, 2, 2.5, 3])
    np.testing.assert_array_equal(guidance.strengths("none", 3.0, 2), [1, 1])
    np.testing.assert_array_equal(guidance.strengths("logits", [1.0, 2.0], 2), [1, 2])
    with pytest.raises(UserError, match="3 scales"):
        guidance.per_scale([1.0, 2.0], 3, "tau")
    with pytest.raises(UserError, match="finite"):
        guidance.per_scale(float("nan"), 3, "cfg")
    with pytest.raises(UserError, match="feature_layers"):
        SamplerConfig(MODEL, TOKENIZER, SCHEDULE, "features", (2,))
    with pytest.raises(UserError, match="logits"):
        SamplerConfig(MODEL, TOKENIZER, SCHEDULE, "pixels")
