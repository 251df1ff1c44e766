"""Cached token pruning: which tokens run, what fills the others, and what it may not change."""

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
from infinity_jax.errors import UserError
from infinity_jax.sampling import sampler, token_pruning
from infinity_jax.sampling.config import SamplerConfig, SamplerInputs
from infinity_jax.sampling.token_pruning import TokenPruning, most_deviating, named, pivotal_tokens, restored
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import pyramid, resize
from infinity_jax.tools.planning import hlo_costs
from infinity_jax.transformer.attention import attend
from infinity_jax.transformer.block import Block, Condition, Seen
from infinity_jax.transformer.layers import modulate

SCHEDULE = ScaleSchedule(((1, 1), (2, 2), (3, 3), (4, 4), (5, 4)), (5, 4))
MODEL = TransformerConfig(
    layers=4, width=64, heads=4, bits=6, text_channels=64, text_length=8, compute_dtype="float32"
)
TOKENIZER = TokenizerConfig(bits=6, base_width=32, multipliers=(1, 1), encoder_blocks=1, decoder_blocks=1)
CONFIG = SamplerConfig(MODEL, TOKENIZER, SCHEDULE)
# Scale 3 (4x4) runs 7 of 16 tokens and is filled from 3x3; scale 4 (5x4) is skipped.
PRUNING = TokenPruning(((3, 0.4), (4, 0.0)), (1, 2))
PRUNED = dataclasses.replace(CONFIG, pruning=PRUNING)

draw: Any = jax.jit(sampler.draw, static_argnums=0)


@pytest.fixture(scope="module")
def params():
    return arbitrary_params(MODEL, SCHEDULE)


@pytest.fixture(scope="module")
def inputs():
    text = np.random.default_rng(1).standard_normal((2, 5, 64)).astype(np.float32)
    return sampler_inputs(text, np.arange(5) < np.array([[5], [3]]), [7, 8], np.full(5, 3), np.ones(5))


def test_the_most_deviating_tokens_are_chosen_row_by_row():
    x_BNC = np.ones((2, 6, 3), np.float32)
    x_BNC[0, [1, 4]] += [[0, 5, 0], [0, 0, -7]]
    x_BNC[1, [0, 5]] += [[4, 0, 0], [0, 3, 0]]
    np.testing.assert_array_equal(most_deviating(jnp.asarray(x_BNC), 2), [[1, 4], [0, 5]])
    # Of equals the earlier ones, always in the order of the picture.
    np.testing.assert_array_equal(most_deviating(jnp.asarray(x_BNC), 4), [[0, 1, 2, 4], [0, 1, 2, 5]])
    np.testing.assert_array_equal(most_deviating(jnp.asarray(x_BNC), 6), [range(6)] * 2)


@pytest.mark.parametrize("kept", [1, 5, 11, 12])
def test_restoration_keeps_updates_of_chosen_tokens_and_fills_the_others(kept):
    random = np.random.default_rng(kept)
    chosen = np.sort([random.permutation(12)[:kept] for _ in range(3)], 1).astype(np.int32)
    update, filling = (random.standard_normal((3, n, 4)).astype(np.float32) for n in (kept, 12))
    expected = filling.copy()
    for row in range(3):
        expected[row, chosen[row]] = update[row]
    np.testing.assert_array_equal(restored(*map(jnp.asarray, (update, chosen, filling))), expected)


def test_a_pruned_block_runs_chosen_tokens_and_fills_the_others_with_resized_updates(params):
    """Each sub-layer beside what it computes of all tokens, with the rows picked afterwards."""
    scale, kept, block = 3, 7, Block(MODEL, SCHEDULE)
    of_layer = jax.tree.map(lambda x: x[1], params["blocks"])
    random = np.random.default_rng(2)

    def array(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    context_BTC = array(2, 5, 64)
    condition = Condition(array(2, 64), array(2, 6, 64), context_BTC, jnp.ones((2, 5), bool))
    past = array(2, 4, 14, 16), array(2, 4, 14, 16)
    fillings, x_BNC = tuple(array(2, 9, 64) for _ in range(3)), array(2, 16, 64)
    bound = block.bind({"params": of_layer})
    text_kv = bound.text_keys_values(context_BTC)
    choose = pivotal_tokens(kept, (4, 4), (3, 3), fillings)

    def remember(new):
        keys, values = (jnp.concatenate(each, 2) for each in zip(past, new, strict=True))
        return Seen(keys, values, 14 + kept), new

    after, new, updates = bound.step(x_BNC, remember, text_kv, condition, scale, choose)
    np.testing.assert_allclose(after, x_BNC + sum(updates), rtol=1e-5, atol=1e-6)

    def picked(x_BNC, chosen_Bn):
        return jnp.take_along_axis(x_BNC, chosen_Bn[..., None], 1)

    def check(sublayer, x_BNC, expected_of):
        chosen_Bn = most_deviating(x_BNC, kept)
        own = picked(updates[sublayer], chosen_Bn)
        np.testing.assert_allclose(own, expected_of(chosen_Bn), rtol=2e-4, atol=2e-5)
        filling = resize.area(fillings[sublayer].reshape(2, 3, 3, 64), (4, 4)).reshape(2, 16, 64)
        is_chosen = (jnp.arange(16) == chosen_Bn[..., None]).any(1)
        np.testing.assert_array_equal(updates[sublayer][~is_chosen], filling[~is_chosen])

    gamma1, gamma2, scale1, scale2, shift1, shift2 = bound._modulation(condition)

    def self_attention(chosen_Bn):
        # All tokens at their own places; rows are picked after the rotation.
        tables = bound._rotary_positions(*bound.schedule.offsets[scale : scale + 2])
        q, k, v = bound.self_attention.project(modulate(x_BNC, scale1, shift1), *tables)
        q, k, v = (jnp.take_along_axis(x, chosen_Bn[:, None, :, None], 2) for x in (q, k, v))
        np.testing.assert_allclose(new[0], k, rtol=1e-4, atol=1e-5)
        keys, values = (jnp.concatenate([old, x], 2) for old, x in zip(past, (k, v), strict=True))
        return bound.self_attention.merge(attend(q, keys, values, "float32")) * gamma1[:, None]

    check(0, x_BNC, self_attention)
    x_BNC += updates[0]
    check(1, x_BNC, lambda chosen: picked(bound._cross(x_BNC, text_kv, condition.mask_BT), chosen))
    x_BNC += updates[1]
    ffn = bound.ffn(modulate(x_BNC, scale2, shift2)) * gamma2[:, None]
    check(2, x_BNC, functools.partial(picked, ffn))


@pytest.mark.long
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_running_every_token_changes_no_bit(params, inputs, dtype):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, compute_dtype=dtype))
    everything = dataclasses.replace(config, pruning=TokenPruning(((2, 1.0), (3, 1.0), (4, 1.0)), (1, 2)))
    jax.tree.map(
        np.testing.assert_array_equal, draw(config, params, inputs), draw(everything, params, inputs)
    )


@pytest.mark.long
def test_skipped_scales_add_nothing_and_earlier_scales_stay(params, inputs):
    drawn, whole = draw(PRUNED, params, inputs), draw(CONFIG, params, inputs)
    assert [bits.shape[1:3] for bits in drawn.bits] == list(SCHEDULE.sizes[:4])
    jax.tree.map(np.testing.assert_array_equal, drawn.bits[:3], whole.bits[:3])
    assert 0 < np.mean(drawn.bits[3] != whole.bits[3]) < 0.5
    np.testing.assert_allclose(drawn.running_sum_BHWd, pyramid.sum_of_codes(drawn.bits, (5, 4)), atol=1e-6)


def test_a_skipped_scale_may_lie_between_others(params, inputs):
    config = dataclasses.replace(CONFIG, pruning=TokenPruning(((2, 0.0),), (0, 3)))
    drawn = jax.eval_shape(functools.partial(sampler.draw, config), params, inputs)
    assert [bits.shape[1:3] for bits in drawn.bits] == [(1, 1), (2, 2), (4, 4), (5, 4)]


def test_the_cache_holds_the_tokens_that_ran(params, inputs):
    pruning = TokenPruning(((2, 0.5), (3, 0.25)), (1, 2))
    config = dataclasses.replace(CONFIG, pruning=pruning, unguided_scales=(1, 3))

    def states(params, inputs):
        params = sampler.rounded(config.model, params)
        state, prepared, all_states = (
            sampler.empty_state(config, 2),
            sampler.prepare(config, params, inputs),
            [],
        )
        for k in config.drawn_scales:
            _, state = sampler.draw_scale(config, params, inputs, prepared, state, k)
            all_states.append(state.caches)
        return all_states

    first, *_, caches = jax.eval_shape(states, params, inputs)
    # 1 + 4 + 9 + 16 tokens, or 1 + 4 + 5 + 4, in places for a multiple of 8.
    places = [{x.shape for x in part.past} for part in caches]
    assert places == [{(layers, 4, 4, n, 16)} for layers, n in ((1, 32), (2, 16), (1, 32))]
    # Both pruned scales are filled from 2x2, the last one that ran all tokens.
    assert pruning.source(2) == pruning.source(3) == 1
    assert first[1].updates is None and [x.shape for x in caches[1].updates] == [(2, 4, 4, 64)] * 3
    assert caches[0].updates is caches[2].updates is None


@pytest.mark.long
def test_guidance_one_is_none(params, inputs):
    """A row chooses its tokens without the other one, also where some scales run one row alone."""
    plain = draw(dataclasses.replace(PRUNED, mixed="none"), params, inputs)
    one = inputs._replace(cfg_BK=jnp.ones((2, 5)))
    for config in (PRUNED, dataclasses.replace(PRUNED, unguided_scales=(2,))):
        jax.tree.map(np.testing.assert_array_equal, plain.bits, draw(config, params, one).bits)


def test_new_values_do_not_compile_again(params, inputs):
    first = draw(PRUNED, params, inputs)
    compiled = draw._cache_size()
    tau_BK = for_all(np.arange(5), 2)
    other = inputs._replace(seeds_B=inputs.seeds_B + 1, tau_BK=tau_BK, top_p_B=jnp.full(2, 0.9, jnp.float32))
    assert any((a != b).any() for a, b in zip(first.bits, draw(PRUNED, params, other).bits, strict=True))
    assert draw._cache_size() == compiled


@pytest.mark.long
def test_compiled_flops_fall_as_the_formula_says():
    schedule = scales.make_schedule("0.06M").prefix(6)
    model = dataclasses.replace(MODEL, width=128, bits=32)
    tokenizer = dataclasses.replace(TOKENIZER, bits=32)
    config = SamplerConfig(model, tokenizer, schedule, mixed="none")
    params = jax.eval_shape(lambda: arbitrary_params(model, schedule))
    inputs: Any = SamplerInputs(
        *(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (  # pyright: ignore
            ((1, 32, 64), jnp.float32), ((1, 32), bool), ((1,), jnp.uint32), ((1, 6), jnp.float32),
            ((1, 6), jnp.float32), ((1,), jnp.float32),
        ))
    )  # fmt: skip

    def flops(config):
        compiled = jax.jit(lambda *x: sampler.draw(config, *x)).lower(params, inputs).compile()
        return hlo_costs.costs(compiled.as_text() or "").flops

    # 6x6 and 8x8 in part, 12x12 not at all.
    pruning = TokenPruning(((3, 0.6), (4, 0.5), (5, 0.0)), (1, 2))
    whole = flops(config)
    fall = whole - flops(dataclasses.replace(config, pruning=pruning))
    saved = token_pruning.saved_flops(pruning, model, schedule, 32)
    assert saved > 0.6 * whole
    assert fall == pytest.approx(saved, rel=0.02)


def test_named_settings():
    million = scales.make_schedule("1M")
    assert named("none", million, 32) is None
    released = named("fastvar", million, 32)
    assert released is not None and released == TokenPruning(
        ((9, 0.6), (10, 0.5), (11, 0.0), (12, 0.0)), (3, 27)
    )
    # As many as the release runs: all but 40% and 50%, rounded down.
    assert [released.kept(k, million.tokens[k]) for k in (8, 9, 10, 11, 12)] == [576, 615, 800, 0, 0]
    assert (
        {released.source(k) for k in (9, 10)} == {8} and released.is_source(8) and not released.is_source(7)
    )
    assert named("fastvar", scales.make_schedule("64px"), 6) == TokenPruning(((4, 0.6), (5, 0.5)), (1, 4))
    assert named("2:0.25,3:0", SCHEDULE, 4) == TokenPruning(((2, 0.25), (3, 0.0)), (0, 3))
    assert TokenPruning(((1, 0.6),), (0, 0)).kept(1, 10) == 6
    for layers in range(1, 60):
        pruning = named("fastvar", million, layers)
        assert pruning is not None and 0 <= pruning.layers[0] <= pruning.layers[1] < layers


@pytest.mark.parametrize(
    "text, message",
    [
        ("fast", "fastvar"),
        ("4:half", "SCALE:SHARE"),
        ("4:0.5:1", "SCALE:SHARE"),
        ("0:0.5", "scale 0 cannot"),
        ("5:0.5", "scale 5 cannot.*1 to 4"),
        ("3:0.5,3:0.4", "different"),
        ("3:1.5", "share of 1.5"),
        ("3:nan", "share of nan"),
    ],
)
def test_wrong_settings_are_named(text, message):
    with pytest.raises(UserError, match=message):
        named(text, SCHEDULE, 4)


@pytest.mark.parametrize("layers", [(2, 1), (0, 4), (-1, 2)])
def test_wrong_layers_are_named(layers):
    with pytest.raises(UserError, match="layers"):
        dataclasses.replace(CONFIG, pruning=TokenPruning(((3, 0.5),), layers))


def test_one_scale_cannot_be_pruned():
    with pytest.raises(UserError, match="cannot be pruned"):
        named("fastvar", SCHEDULE.prefix(1), 4)
