"""The tokenizer as a whole: shapes, clipping, gradients through the bits, and a training step that learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.systems import initial_params

from infinity_jax.config import TokenizerConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule, dense_schedule
from infinity_jax.tokenizer.model import Tokenizer, reconstruct
from infinity_jax.training import optim
from infinity_jax.training import state as train_state
from infinity_jax.training.tokenizer_step import TokenizerLossConfig, TrainingScales, make_train_step
from infinity_jax.training.train_tokenizer import feature_loss

SMALL = TokenizerConfig(
    bits=16, base_width=32, multipliers=(1, 1), encoder_blocks=1, decoder_blocks=1, pixel_patch=4
)


@pytest.mark.parametrize("bits", [14, 64])
@pytest.mark.parametrize(("multipliers", "patch", "stride"), [((1, 1, 1, 1), 1, 8), ((1, 1, 2), 4, 16)])
def test_shapes_follow_the_config(bits, multipliers, patch, stride):
    config = TokenizerConfig(
        bits=bits,
        base_width=32,
        multipliers=multipliers,
        encoder_blocks=1,
        decoder_blocks=1,
        pixel_patch=patch,
    )
    assert config.stride == stride
    tokenizer = Tokenizer(config)
    params = jax.eval_shape(lambda: initial_params(tokenizer, 4 * stride, 0))
    image = jax.ShapeDtypeStruct((2, 4 * stride, 2 * stride, 3), jnp.float32)
    features = jax.eval_shape(lambda p, x: tokenizer.apply({"params": p}, x, method="encode"), params, image)
    assert features.shape == (2, 4, 2, bits)
    decoded = jax.eval_shape(
        lambda p, x: tokenizer.apply({"params": p}, x, method="decode"), params, features
    )
    assert decoded.shape == image.shape


def test_a_decoder_may_have_other_widths_than_the_encoder():
    config = dataclasses.replace(SMALL, multipliers=(1, 2), decoder_multipliers=(3, 1))
    params = jax.eval_shape(lambda: initial_params(Tokenizer(config), 32, 0))
    assert params["encoder"]["conv_out"]["kernel"].shape == (3, 3, 64, 16)
    assert params["decoder"]["conv_in"]["kernel"].shape == (3, 3, 16, 32)
    assert params["decoder"]["conv_out"]["kernel"].shape == (3, 3, 96, 3 * 16)
    with pytest.raises(UserError, match=r"decoder_multipliers \(1,\) are 1 levels, and multipliers 2"):
        dataclasses.replace(SMALL, decoder_multipliers=(1,))
    # Fingerprints of prepared features are made of this text, and do not depend on the decoder.
    assert str(config) == str(dataclasses.replace(config, decoder_multipliers=()))
    assert "decoder_multipliers" not in str(config)


@pytest.fixture(scope="module")
def small():
    tokenizer = Tokenizer(SMALL)
    return tokenizer, initial_params(tokenizer, 32, 0)


@pytest.mark.long
def test_pictures_are_clipped_and_the_gradient_reaches_the_encoder(small):
    tokenizer, params = small
    image = jax.random.uniform(jax.random.key(0), (1, 32, 32, 3), minval=-1.0)
    schedule = ScaleSchedule(((1, 1), (4, 4)), (4, 4))
    assert jnp.abs(reconstruct(tokenizer, params, image, schedule)).max() <= 1
    gradients = jax.grad(lambda p: jnp.mean(tokenizer.apply({"params": p}, image, schedule)[0] ** 2))(params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients["encoder"]["conv_in"]))


@pytest.mark.long
@pytest.mark.parametrize("quantizer", ["bsq", "lfq"])
def test_a_few_steps_on_one_batch_lower_the_loss(quantizer):
    config = TokenizerConfig(
        bits=8,
        base_width=32,
        multipliers=(1, 1),
        encoder_blocks=1,
        decoder_blocks=1,
        pixel_patch=4,
        quantizer=quantizer,
    )
    tokenizer = Tokenizer(config)
    settings = optim.OptimConfig(learning_rate=2e-3, warmup_steps=1)
    optimiser = optim.make_optimiser(settings, 30)
    state = train_state.create(initial_params(tokenizer, 32, 0), optimiser, ema=True)
    step = jax.jit(
        make_train_step(
            tokenizer,
            TokenizerLossConfig(),
            settings,
            optimiser,
            {32: TrainingScales(dense_schedule(4), drop=0.5)},
            feature_loss(TokenizerLossConfig(), config),
        )
    )
    image = np.full((2, 32, 32, 3), 255, np.uint8)
    image[:, 8:24, 8:24] = (200, 30, 30)
    history = []
    for _ in range(30):
        state, metrics = step(state, {"image": image}, jax.random.key(0))
        assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"])
        history.append(float(metrics["l1"]))
    assert history[-1] < 0.6 * history[0]


def test_a_width_that_groupnorm_cannot_divide_is_refused():
    with pytest.raises(UserError, match="48 is not divisible by 32"):
        TokenizerConfig(base_width=48)


@pytest.mark.long
def test_gradients_are_the_same_whatever_is_computed_again():
    """In float32: with bfloat16 operands numbers that are computed again are rounded elsewhere, which may turn bits."""
    config = dataclasses.replace(SMALL, multipliers=(1, 2), compute_dtype="float32")
    image = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3), minval=-1)
    schedule = ScaleSchedule(((1, 1), (2, 2)), (2, 2))
    params = initial_params(Tokenizer(config), 16, 0)
    gradients, programs = [], []
    for remat in ("none", "block"):
        tokenizer = Tokenizer(dataclasses.replace(config, remat=remat))

        def loss(params, tokenizer=tokenizer):
            made, _ = tokenizer.apply({"params": params}, image, schedule)
            return jnp.mean((made - image) ** 2)

        programs.append(str(jax.make_jaxpr(jax.grad(loss))(params)))
        gradients.append(jax.tree.leaves(jax.jit(jax.grad(loss))(params)))
    assert programs[0] != programs[1]
    # Recomputed numbers are rounded as the compiler fuses them.
    for plain, again in zip(*gradients, strict=True):
        scale = float(jnp.abs(plain).max()) + 1e-6
        assert jnp.abs(plain - again).max() < 1e-5 * scale


def test_what_is_computed_again_is_no_part_of_a_fingerprint():
    assert str(dataclasses.replace(SMALL, remat="block")) == str(SMALL)
    with pytest.raises(UserError, match="dots"):
        dataclasses.replace(SMALL, remat="dots")
