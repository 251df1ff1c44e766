"""Every size of both quantisers trains, at both strides, with one scale and with many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.systems import initial_params

from infinity_jax.config import TokenizerConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import make_schedule
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.training import optim
from infinity_jax.training import state as train_state
from infinity_jax.training.tokenizer_step import TokenizerLossConfig, make_train_step, training_scales

SETTINGS = optim.OptimConfig(learning_rate=1e-3, warmup_steps=1)
# Quantiser, bits, stride, preset of scales.
RUN = [
    ("bsq", 14, 8, "32px"),
    ("bsq", 64, 16, "64px_single"),
    ("lfq", 16, 8, "64px_single"),
    ("lfq", 20, 16, "32px"),
]
TRACED = [
    ("bsq", 16, 16, "32px"),
    ("bsq", 18, 8, "64px_single"),
    ("bsq", 20, 16, "64px_single"),
    ("bsq", 24, 8, "32px"),
    ("bsq", 32, 16, "32px"),
    ("lfq", 14, 16, "64px_single"),
    ("lfq", 18, 8, "32px"),
    ("lfq", 24, 16, "32px"),
]


def distance(image_BHW3, other_BHW3):
    return jnp.mean((image_BHW3 - other_BHW3) ** 2)


def step_state_and_batch(quantizer: str, bits: int, stride: int, preset: str):
    """The training step, a function that makes its first state, and a batch of one picture."""
    config = TokenizerConfig(
        bits=bits, base_width=32, multipliers=(1,), encoder_blocks=1, decoder_blocks=1, pixel_patch=stride,
        quantizer=quantizer,
    )  # fmt: skip
    assert config.stride == stride
    tokenizer, schedule, loss = Tokenizer(config), make_schedule(preset), TokenizerLossConfig()
    side = schedule.last[0] * stride
    optimiser = optim.make_optimiser(SETTINGS, 2)
    scales = {side: training_scales("short", schedule, 0.0, 3)}
    step = make_train_step(tokenizer, loss, SETTINGS, optimiser, scales, distance)

    def new_state():
        return train_state.create(initial_params(tokenizer, side, 0), optimiser, ema=False)

    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    return step, new_state, {"image": jnp.asarray(image)}


@pytest.mark.long
@pytest.mark.parametrize(("quantizer", "bits", "stride", "preset"), RUN)
def test_one_step_has_a_finite_loss_and_moves_the_encoder(quantizer, bits, stride, preset):
    step, new_state, batch = step_state_and_batch(quantizer, bits, stride, preset)
    state = new_state()
    after, metrics = jax.jit(step)(state, batch, jax.random.key(0))
    assert np.isfinite(metrics["loss"]) and metrics["gradient_norm"] > 0
    before, moved = (tree.params["encoder"]["conv_out"]["kernel"] for tree in (state, after))
    assert np.isfinite(moved).all() and (moved != before).any()


@pytest.mark.parametrize(("quantizer", "bits", "stride", "preset"), TRACED)
def test_a_step_can_be_made_for_every_size(quantizer, bits, stride, preset):
    step, new_state, batch = step_state_and_batch(quantizer, bits, stride, preset)
    state = jax.eval_shape(new_state)
    after, _ = jax.eval_shape(step, state, batch, jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)
    assert state.params["encoder"]["conv_out"]["bias"].shape == (bits,)


def test_lfq_of_many_bits_is_refused_with_the_memory_it_would_need():
    step, new_state, batch = step_state_and_batch("lfq", 32, 8, "64px_single")
    # 64 tokens x 2^32 codes of 4 bytes.
    with pytest.raises(
        UserError, match=r"2\^32 codes .*: 1.1e\+12 bytes .* use quantizer='bsq' above 24 bits"
    ):
        jax.eval_shape(step, jax.eval_shape(new_state), batch, jax.random.key(0))
