"""The conventional classifier over 2^d indices (paper Table 5), from its size to its draws."""

import dataclasses
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arbitrary_params import arbitrary_params
from helpers.drawing import draw_settings, sampler_inputs

from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.runtime.mesh import MeshConfig
from infinity_jax.sampling import head_index, sampler
from infinity_jax.sampling.bits import draw_bits
from infinity_jax.sampling.config import SamplerConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import indices
from infinity_jax.tools.convert.transformer_names import transformer_links
from infinity_jax.tools.planning import memory
from infinity_jax.training import flops, optim
from infinity_jax.training import state as train_state
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.transformer_losses import index_loss, token_weights
from infinity_jax.training.transformer_step import LossConfig, StepConfig, make_eval_step, make_train_step
from infinity_jax.transformer.heads import BitHead, IndexHead
from infinity_jax.transformer.transformer import Transformer, init_params

SCHEDULE = ScaleSchedule(((1, 1), (2, 2), (3, 2)), (3, 2))
MODEL = TransformerConfig(
    layers=2, width=64, heads=4, bits=6, head="index", text_channels=128, text_length=8, drop_path=0.0,
    compute_dtype="float32",
)  # fmt: skip
TOKENIZER = TokenizerConfig(bits=6, base_width=32, multipliers=(1, 1), encoder_blocks=1, decoder_blocks=1)
CONFIG = SamplerConfig(MODEL, TOKENIZER, SCHEDULE)


def test_index_and_bits_are_each_other_s_inverse():
    bits = np.array(list(itertools.product([False, True], repeat=6)))
    index = indices.to_index(jnp.asarray(bits))
    assert sorted(index.tolist()) == list(range(64))
    np.testing.assert_array_equal(index, bits @ 2 ** np.arange(6))
    np.testing.assert_array_equal(indices.to_bits(index, 6), bits)


def head_parameters(head: type[BitHead], config: TransformerConfig) -> int:
    x_BLC, vector_BC = jnp.zeros((1, 1, config.width)), jnp.zeros((1, config.width))
    shapes = jax.eval_shape(
        lambda: nn.meta.unbox(head(config).init(jax.random.key(0), x_BLC, vector_BC)["params"]["logits"])
    )
    return shapes["kernel"].size


def test_parameters_of_both_classifiers_are_those_of_the_paper():
    # Section 3.3: width 2048 with 16 and with 32 bits.
    bits = TransformerConfig(width=2048, heads=16, bits=16)
    index = dataclasses.replace(bits, head="index")
    ivc, conventional = head_parameters(BitHead, bits), head_parameters(IndexHead, index)
    assert (ivc, conventional) == (2048 * 32, 2048 * 65536)
    assert 1 - ivc / conventional == pytest.approx(0.9995, abs=5e-5)
    assert head_parameters(BitHead, dataclasses.replace(bits, bits=32)) == pytest.approx(0.13e6, rel=0.01)
    more = flops.parameter_count(index) - flops.parameter_count(bits)
    assert more == (65536 - 32) * 2049
    counted = [flops.forward_flops(config, SCHEDULE, 8).head for config in (bits, index)]
    assert counted[1] / counted[0] == 2048


def test_what_the_head_cannot_do_is_refused():
    with pytest.raises(UserError, match=r"2\^17 classes, 1.34e\+08 weights with width 1024"):
        TransformerConfig(width=1024, heads=8, bits=17, head="index")
    with pytest.raises(UserError, match="unknown head 'words'; use one of bits, index"):
        TransformerConfig(head="words")
    with pytest.raises(UserError, match="the release has names for the weights of head 'bits' alone"):
        transformer_links(MODEL, 0)
    with pytest.raises(UserError, match="reuse_guidance needs a transformer with head 'bits'"):
        dataclasses.replace(CONFIG, unguided_scales=(2,), reuse_guidance=True)
    with pytest.raises(UserError, match="head 'index'"):
        model = dataclasses.replace(MODEL, remat="block")
        memory.train_memory(model, SCHEDULE, 8, 8, 1, MeshConfig())


@pytest.mark.parametrize("weights", ["uniform", "by_scale"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_metrics_are_those_of_the_softmax(weights, smoothing):
    random = np.random.default_rng(0)
    logits = random.standard_normal((2, 11, 16)).astype(np.float32) * 3
    bits = random.integers(0, 2, (2, 11, 4)).astype(np.int8)
    logits[0, 3] = 0  # a tie: the first index, all bits 0
    p = np.exp(np.asarray(logits, np.float64))
    p /= p.sum(-1, keepdims=True)
    target = (bits * 2 ** np.arange(4)).sum(-1)
    expected = -(1 - smoothing) * np.log(np.take_along_axis(p, target[..., None], -1)[..., 0])
    expected -= smoothing * np.log(p).mean(-1)
    loss, metrics = index_loss(jnp.asarray(logits), jnp.asarray(bits), SCHEDULE, weights, smoothing)
    wanted = (expected.mean(0) * token_weights(SCHEDULE, weights)).sum() / 4
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    likeliest = logits.argmax(-1)
    right = (likeliest[..., None] >> np.arange(4) & 1) == bits
    np.testing.assert_allclose(metrics["bit_accuracy"], right.mean(), rtol=1e-6)
    for k, tokens in enumerate((slice(0, 1), slice(1, 5), slice(5, 11))):
        np.testing.assert_allclose(metrics["loss_per_scale"][k], expected[:, tokens].mean() / 4, rtol=1e-5)
        np.testing.assert_allclose(metrics["bit_accuracy_per_scale"][k], right[:, tokens].mean(), rtol=1e-6)
        np.testing.assert_allclose(
            metrics["token_accuracy_per_scale"][k], (likeliest == target)[:, tokens].mean(), rtol=1e-6
        )


@pytest.mark.long
def test_a_tiny_batch_is_learned_by_heart():
    optim_config = optim.OptimConfig(learning_rate=3e-3, warmup_steps=1)
    random = np.random.default_rng(0)
    batch: Any = {
        "features": random.standard_normal((2, 3, 2, 6)).astype(np.float32),
        "text": random.standard_normal((2, 8, 128)).astype(np.float32),
        "text_mask": np.ones((2, 8), bool),
    }
    model = Transformer(MODEL)
    settings = CorrectionConfig(p=0.0), LossConfig(caption_drop=0.0), optim_config
    config = StepConfig(MODEL, TOKENIZER, *settings, steps=60)
    step = jax.jit(make_train_step(config, SCHEDULE))
    state = train_state.create(init_params(MODEL, jax.random.key(0), SCHEDULE), config.optimiser, ema=False)
    first = None
    for _ in range(60):
        state, metrics = step(state, batch, jax.random.key(0))
        first = first or float(metrics["loss"])
    assert first == pytest.approx(np.log(2), rel=0.1)  # a fair coin for each bit
    evaluate = make_eval_step(model, SCHEDULE, TOKENIZER)
    metrics = evaluate(state.params, batch | {"valid": np.ones(2, bool)})
    assert metrics["loss"] < 0.1 and metrics["token_accuracy_per_scale"].min() == 1


# Drawing.


def share(logits, tau=1.0, top_p=1.0, scale=0, tokens=20_000) -> np.ndarray:
    """How often each index is drawn."""
    logits_BNV = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (2, tokens, len(logits)))
    drawn = head_index.draw_index(logits_BNV, draw_settings([3, 4], tau, top_p, scale))
    return np.bincount(np.asarray(drawn).ravel(), minlength=len(logits)) / (2 * tokens)


LOGITS = np.array([0.0, 2.0, -1.0, 1.5, -4.0, 0.5, 1.0, -2.0])


@pytest.mark.parametrize("tau", [1.0, 0.5, 2.0])
def test_draws_follow_the_softmax(tau):
    p = np.exp(LOGITS / tau)
    p /= p.sum()
    n = 40_000
    chi_square = (n * (share(LOGITS, tau) - p) ** 2 / p).sum()
    assert chi_square < 24.3  # 7 degrees of freedom: exceeded once in 1000


def test_only_the_nucleus_is_drawn_and_at_temperature_0_only_the_likeliest():
    p = np.exp(LOGITS) / np.exp(LOGITS).sum()
    order = np.argsort(-p)
    for top_p in (0.0, 0.3, 0.5, 0.8, 0.97):
        kept = order[: np.searchsorted(np.cumsum(p[order]), top_p) + 1]
        expected = np.where(np.isin(np.arange(8), kept), p, 0)
        got = share(LOGITS, top_p=top_p)
        assert (got > 0).nonzero()[0].tolist() == sorted(kept)
        np.testing.assert_allclose(got, expected / expected.sum(), atol=0.01)
    np.testing.assert_array_equal(share(LOGITS, tau=0), np.arange(8) == 1)
    np.testing.assert_array_equal(share(LOGITS, tau=0, top_p=0.5), np.arange(8) == 1)


def test_pictures_have_a_nucleus_and_a_temperature_of_their_own():
    logits = jnp.broadcast_to(jnp.asarray(LOGITS, jnp.float32), (3, 2000, 8))
    together = head_index.draw_index(logits, draw_settings([3, 4, 5], [1.0, 0.0, 0.5], [1.0, 0.5, 0.9]))
    for i, (tau, top_p) in enumerate([(1.0, 1.0), (0.0, 0.5), (0.5, 0.9)]):
        alone = head_index.draw_index(logits[:1], draw_settings([3 + i], tau, top_p))
        np.testing.assert_array_equal(together[i], alone[0])


def test_one_bit_has_the_top_p_of_bits():
    x = np.linspace(-4, 4, 81)
    difference = jnp.broadcast_to(jnp.asarray(x, jnp.float32)[:, None], (400, 81, 1))
    logits = jnp.concatenate([jnp.zeros_like(difference), difference], -1)
    settings = draw_settings(np.arange(400), 0.7, 0.9)
    dead = 0.7 * np.log(0.9 / 0.1)
    for draws in (head_index.draw_index(logits, settings), draw_bits(difference, settings)[..., 0]):
        mean = np.mean(draws, 0)
        np.testing.assert_array_equal(mean == 0, x < -dead)
        np.testing.assert_array_equal(mean == 1, x > dead)


def test_draws_of_scales_seeds_and_tokens_are_independent():
    logits = jnp.zeros((2, 4000, 16))
    drawn = [np.asarray(head_index.draw_index(logits, draw_settings([1, 2], scale=k))) for k in (0, 1)]
    streams = [*drawn[0], *drawn[1], drawn[0][0][::-1]]
    for a, b in itertools.combinations(streams, 2):
        assert abs(np.mean(a == b) - 1 / 16) < 0.02


# The sampler.


@pytest.fixture(scope="module")
def params():
    return arbitrary_params(MODEL, SCHEDULE)


@pytest.fixture(scope="module")
def inputs():
    text = np.random.default_rng(1).standard_normal((3, 5, 128)).astype(np.float32)
    mask = np.arange(5) < np.array([[5], [2], [3]])
    return sampler_inputs(text, mask, [7, 8, 9], np.full(3, 3), np.ones(3), top_p=0.9)


draw = jax.jit(sampler.draw, static_argnums=0)


@pytest.mark.slow
@pytest.mark.parametrize("mixed", ["logits", "features"])
def test_a_picture_depends_on_its_seed_and_prompt_alone(params, inputs, mixed):
    config = dataclasses.replace(CONFIG, mixed=mixed, feature_layers=(0,))
    together = draw(config, params, inputs)
    assert [x.shape for x in together.bits] == [(3, 1, 1, 6), (3, 2, 2, 6), (3, 3, 2, 6)]
    for i in range(3):
        alone = draw(config, params, jax.tree.map(lambda x, i=i: x[i : i + 1], inputs))
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_array_equal(a, b[i : i + 1]), alone.bits, together.bits
        )
    other = draw(config, params, inputs._replace(seeds_B=inputs.seeds_B + 10))
    assert any((a != b).any() for a, b in zip(together.bits, other.bits, strict=True))


def test_greedy_draws_the_likeliest_index_of_guided_logits(params, inputs):
    greedy = inputs._replace(tau_BK=jnp.zeros((3, 3)))
    drawn = draw(CONFIG, params, greedy)
    first = np.asarray(indices.to_index(drawn.bits[0]))[:, 0, 0]
    lone = ScaleSchedule(((1, 1),), (3, 2))
    empty = jnp.zeros((3, 0, 6))

    @jax.jit
    def logits(drop):
        arguments = empty, inputs.text_BTC, inputs.mask_BT, lone, jnp.full(3, drop)
        return jnp.asarray(Transformer(MODEL).apply({"params": params}, *arguments))

    mixed = 3 * logits(False) - 2 * logits(True)
    np.testing.assert_array_equal(first, np.asarray(mixed)[:, 0].argmax(-1))
