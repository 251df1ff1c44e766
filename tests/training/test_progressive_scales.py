"""Scales that join one by one: when, with which weight, and that a step is else the plain one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden_cases import go_through

from infinity_jax.config import LABEL_CHANNELS, TokenizerConfig, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import make_schedule
from infinity_jax.tokenizer import vq
from infinity_jax.training import progressive_scales
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.optim import OptimConfig
from infinity_jax.training.state import create
from infinity_jax.training.transformer_step import LossConfig, StepConfig, make_train_step
from infinity_jax.transformer.conditions import digits
from infinity_jax.transformer.transformer import init_variables

SCALES = "1-2-3-4"
MODEL = TransformerConfig(
    layers=1, width=64, heads=2, bits=4, head="index", codes=8, positions=f"learned+scales:{SCALES}",
    condition="class", classes=3, text_channels=LABEL_CHANNELS, text_length=1, adaln="own", drop_path=0.0,
    compute_dtype="float32",
)  # fmt: skip
TOKENIZER = TokenizerConfig(bits=4, quantizer="vq", codes=8, phis=0, phi_share=0.0)


def pytest_generate_tests(metafunc):
    go_through(metafunc, "var", {"schedules": "var_schedules"})


def test_scales_join_as_in_the_release(schedules):
    for given in schedules.info["progressive"]:
        first, warmup = given["pg0"] + 1, given["wp_it"]
        joins = progressive_scales.join_steps(first, given["K"], given["pg"], warmup, given["max_it"])
        newest = [int(progressive_scales.newest_scale(joins, it)) + first - 1 for it in given["its"]]
        assert newest == given["prog_si"]


@pytest.fixture(scope="module")
def setting():
    schedule = make_schedule(SCALES)
    params = jax.tree.map(
        lambda x: getattr(x, "value", x),
        init_variables(MODEL, jax.random.key(0), schedule)["params"],
        is_leaf=lambda x: hasattr(x, "names"),
    )
    codes = jax.random.normal(jax.random.key(1), (8, 4))
    batch = {
        "features": jax.random.normal(jax.random.key(2), (4, *schedule.last, 4)),
        "text": digits(jnp.array([[0], [1], [2], [0]])),
        "text_mask": jnp.ones((4, 1), bool),
    }
    return schedule, params, vq.VectorQuantizer(codes, share=0.0), batch


def step_of(setting, step, **loss):
    schedule, params, quantizer, batch = setting
    config = StepConfig(
        MODEL, TOKENIZER, CorrectionConfig(p=0.0), LossConfig(token_weights="uniform", **loss),
        OptimConfig(learning_rate=1e-3, warmup_steps=0), 100, quantizer=quantizer,
    )  # fmt: skip
    state = create(params, config.optimiser, ema=False)
    state = dataclasses.replace(state, step=jnp.int32(step))
    return jax.jit(make_train_step(config, schedule))(state, batch, jax.random.key(0))


@pytest.mark.long
def test_with_all_scales_a_step_is_the_plain_one(setting):
    plain, numbers = step_of(setting, 99)
    progressive, same = step_of(setting, 99, progressive=0.5, progressive_first=2)
    for name, value in numbers.items():
        np.testing.assert_allclose(value, same[name], rtol=1e-5, atol=1e-6, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), plain.params, progressive.params
    )


@pytest.mark.long
def test_scales_that_have_not_joined_count_nothing_and_new_ones_little(setting):
    """The loss is that of the scales which are there, of the tokens of all."""
    schedule, *_ = setting
    _, whole = step_of(setting, 0)
    _, first = step_of(setting, 0, progressive=0.5, progressive_first=2)
    tokens = np.array(schedule.tokens)
    wanted = (np.asarray(whole["loss_per_scale"]) * tokens)[:2].sum() / tokens.sum()
    np.testing.assert_allclose(first["loss"], wanted, rtol=1e-5)
    np.testing.assert_array_equal(first["loss_per_scale"][2:], 0)
    joins = progressive_scales.join_steps(2, 4, 0.5, 0, 100)
    assert list(joins) == sorted(joins) and joins[0] == 0 and joins[-1] <= 50
    _, new = step_of(setting, int(joins[1]) + 5, progressive=0.5, progressive_first=2, progressive_ramp=10)
    _, full = step_of(setting, int(joins[1]) + 5)
    losses = np.asarray(full["loss_per_scale"]) * tokens
    np.testing.assert_allclose(new["loss"], (losses[:2].sum() + 0.5 * losses[2]) / tokens.sum(), rtol=1e-5)


def test_bits_and_too_few_scales_are_refused(setting):
    with pytest.raises(UserError, match="progressive_first is 5 and pictures have 4"):
        step_of(setting, 0, progressive=0.5)
    schedule, _, _, _ = setting
    bits = dataclasses.replace(MODEL, head="bits", codes=0)
    config = StepConfig(
        bits,
        TOKENIZER,
        CorrectionConfig(),
        LossConfig(progressive=0.5, token_weights="uniform"),
        OptimConfig(1e-3),
        10,
    )
    with pytest.raises(UserError, match="models of codes"):
        make_train_step(config, schedule)
