"""A transformer of labels and codes: what it reads, and that sampling with a cache is teacher forcing."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arbitrary_params import arbitrary_params
from helpers.drawing import sampler_inputs

from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.sampling import head_index, sampler
from infinity_jax.sampling.config import SamplerConfig
from infinity_jax.sampling.given import Given
from infinity_jax.sampling.token_pruning import named
from infinity_jax.scales import make_schedule
from infinity_jax.tokenizer import vq
from infinity_jax.training import correction
from infinity_jax.transformer.conditions import digits
from infinity_jax.transformer.transformer import Transformer

MODEL = TransformerConfig(
    layers=2, width=64, heads=4, bits=6, head="index", codes=12, positions="learned+scales:1-2-3",
    condition="class", classes=5, text_channels=2, text_length=1, adaln="own", ffn_multiple=1, drop_path=0.0,
    compute_dtype="float32",
)  # fmt: skip
SCHEDULE = make_schedule("1-2-3")
TOKENIZER = TokenizerConfig(
    bits=6, quantizer="vq", codes=12, base_width=32, multipliers=(1, 1), encoder_blocks=1, decoder_blocks=1
)
CONFIG = SamplerConfig(MODEL, TOKENIZER, SCHEDULE)
LABELS = jnp.array([0, 4, 2])
TEXT, MASK = digits(LABELS)[:, None], jnp.ones((3, 1), bool)


@pytest.fixture(scope="module")
def quantizer():
    draws = np.random.default_rng(0)
    shapes = (12, 6), (4, 3, 3, 6, 6), (4, 6)
    codes, kernels, biases = (jnp.asarray(draws.normal(size=shape), jnp.float32) for shape in shapes)
    return vq.VectorQuantizer(codes, kernels / 20, biases / 20, vq.phi_of_scale(3, 4))


@pytest.fixture(scope="module")
def params():
    return arbitrary_params(MODEL, SCHEDULE)


def logits(params, inputs, text=TEXT, drop=None, config=MODEL):
    model = Transformer(config)
    return jax.jit(lambda p: model.apply({"params": p}, inputs, text, MASK, SCHEDULE, drop))(params)


def test_a_dropped_label_is_the_row_of_no_label(params):
    inputs = jnp.asarray(np.random.default_rng(1).normal(size=(3, SCHEDULE.length - 1, 6)), jnp.float32)
    dropped = logits(params, inputs, drop=jnp.array([False, True, False]))
    none = digits(jnp.array([0, MODEL.classes, 2]))[:, None]
    np.testing.assert_allclose(dropped, logits(params, inputs, none), atol=1e-6)
    assert np.abs(dropped - logits(params, inputs))[1].max() > 1e-3


def test_drawing_with_a_cache_is_teacher_forcing(params, quantizer):
    """Greedy draws are the likeliest codes of the logits that the whole sequence gives."""
    inputs = sampler_inputs(TEXT, MASK, [0, 1, 2], np.full(3, 2.0), np.zeros(3))
    drawn = jax.jit(sampler.draw, static_argnums=0)(CONFIG, params, inputs, quantizer)
    read, running_sum = [], jnp.zeros_like(drawn.running_sum_BHWd)
    for k, numbers in enumerate(drawn.bits[:-1]):
        running_sum = quantizer.add(running_sum, quantizer.look_up(numbers), k)
        read.append(quantizer.next_input(running_sum, SCHEDULE.sizes[k + 1]).reshape(3, -1, 6))
    inputs_BLd = jnp.concatenate(read, 1)
    none = jnp.broadcast_to(digits(jnp.array(MODEL.classes)), TEXT.shape)
    mixed = 2 * logits(params, inputs_BLd) - logits(params, inputs_BLd, none)
    expected = np.asarray(mixed).argmax(-1)
    ours = np.concatenate([np.asarray(x).reshape(3, -1) for x in drawn.bits], 1)
    np.testing.assert_array_equal(ours, expected)


def test_labels_of_training_are_the_quantiser_s_own(quantizer):
    features = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 3, 6)), jnp.float32)
    inputs, labels = correction.self_correction(features, None, SCHEDULE, quantizer)
    out = vq.quantise(features, SCHEDULE, quantizer)
    np.testing.assert_array_equal(labels, np.concatenate([x.reshape(2, -1) for x in out.symbols], 1))
    assert inputs.shape == (2, SCHEDULE.length - 1, 6) and labels.dtype == jnp.int32


def test_given_tokens_stay(params, quantizer):
    inputs = sampler_inputs(TEXT, MASK, [0, 1, 2], np.full(3, 2.0), np.zeros(3))
    given = Given(
        tuple(jnp.zeros((1, *size), bool).at[:, 0, 0].set(True) for size in SCHEDULE.sizes),
        tuple(jnp.full((3, *size), 7) for size in SCHEDULE.sizes),
    )
    for config in (CONFIG, dataclasses.replace(CONFIG, smooth=True)):
        drawn = jax.jit(sampler.draw, static_argnums=0)(
            config, params, inputs._replace(given=given), quantizer
        )
        for symbols in drawn.bits:
            there = symbols[:, 0, 0]
            numbers = there if there.ndim == 1 else there.argmax(-1)
            np.testing.assert_array_equal(numbers, 7)


def test_the_likeliest_k():
    logits_BNV = jnp.asarray([[[3.0, -1.0, 3.0, 0.0, -2.0, 2.0]]])
    for k, kept in ((1, [0, 2]), (2, [0, 2]), (3, [0, 2, 5]), (4, [0, 2, 3, 5]), (5, [0, 1, 2, 3, 5])):
        np.testing.assert_array_equal(np.flatnonzero(head_index.in_top_k(logits_BNV, k)), kept)
    draws = np.random.default_rng(0).normal(size=(2, 3, 50)).astype(np.float32)
    for k in (1, 7, 49):
        kept = np.asarray(head_index.in_top_k(jnp.asarray(draws), k))
        np.testing.assert_array_equal(kept, draws >= np.sort(draws, -1)[..., -k, None])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 0}, "classes 0 with condition 'class'"),
        ({"text_channels": 384}, "a label is one token of 2 channels"),
        ({"head": "bits"}, "codes 12 are predicted by head 'index'"),
        ({"positions": "learned+scales:9px"}, "unknown scale preset '9px'"),
    ],
)
def test_configs_that_cannot_be_are_refused(change, message):
    with pytest.raises(UserError) as refused:
        dataclasses.replace(MODEL, **change)
    assert message in str(refused.value)


def test_pruning_is_refused():
    with pytest.raises(UserError, match="pruning is for models of captions"):
        dataclasses.replace(CONFIG, pruning=named("1:0.5", SCHEDULE, 2))


def test_settings_for_indices_are_refused_with_bits():
    bits = TransformerConfig(layers=1, width=64, heads=4, bits=6, text_channels=128, text_length=8)
    tokenizer = TokenizerConfig(bits=6, base_width=32, multipliers=(1, 1))
    changes: list[Any] = [{"top_k": 5}, {"smooth": True}]
    for change in changes:
        with pytest.raises(UserError, match="this transformer draws bits"):
            SamplerConfig(bits, tokenizer, SCHEDULE, **change)
