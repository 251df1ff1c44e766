"""A whole step of the tokenizer and its adversary against the same losses written out plainly."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.systems import initial_params

from infinity_jax.config import TokenizerConfig
from infinity_jax.scales import dense_schedule
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.training import optim
from infinity_jax.training import state as train_state
from infinity_jax.training.adversary import Adversary
from infinity_jax.training.discriminator import Discriminator, DiscriminatorConfig
from infinity_jax.training.tokenizer_losses import quantizer_loss
from infinity_jax.training.tokenizer_step import (
    ADVERSARIAL,
    TokenizerLossConfig,
    TrainingScales,
    make_train_step,
)

SIDE, BATCH, STEP, KEY = 16, 4, 2, jax.random.key(3)
TOKENIZER = Tokenizer(
    TokenizerConfig(
        bits=8, base_width=32, multipliers=(1,), encoder_blocks=1, decoder_blocks=1, pixel_patch=4
    )
)
LOSS = TokenizerLossConfig(l1=0.7, features=0.3, quantizer=4.0)
OPTIM = optim.OptimConfig(learning_rate=1e-3, warmup_steps=0, weight_decay=0.5, clip=1.0, ema_decay=0.9)
SCALES = TrainingScales(dense_schedule(4), drop=0.5)
ADVERSARY = DiscriminatorConfig(base_width=32, layers=1, weight=0.5, ramp_steps=4, lecam=0.7)


def l1_of_means(image, made):
    """A feature loss that compiles at once."""
    return jnp.abs(image.mean((1, 2)) - made.mean((1, 2))).mean()


def judged(params, pictures):
    return jnp.asarray(Discriminator(ADVERSARY).apply({"params": params}, pictures))


@pytest.fixture(scope="module")
def stepped():
    """The state before a step, the state after it, its metrics, and the pictures with the scales that they use."""
    optimiser = optim.make_optimiser(OPTIM, 100)
    fresh = jax.jit(Discriminator(ADVERSARY).init)(KEY, jnp.zeros((1, SIDE, SIDE, 3)))["params"]
    # Of ordinary size: a fresh discriminator says 0 of everything, and no regularisation sets in.
    fresh = jax.tree.map(lambda x: 5 * x + (0.3 if x.shape == (1,) else 0.0), fresh)
    opponent = train_state.create(nn.meta.unbox(fresh), optimiser, ema=False)
    state = train_state.create(initial_params(TOKENIZER, SIDE, 0), optimiser, ema=True)
    state = dataclasses.replace(
        state,
        step=jnp.int32(STEP),
        adversary=dataclasses.replace(opponent, step=jnp.int32(1), skipped=None),
    )
    step = make_train_step(
        TOKENIZER, LOSS, OPTIM, optimiser, {SIDE: SCALES}, l1_of_means, Adversary(ADVERSARY, optimiser)
    )
    image = np.random.default_rng(0).integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8)
    batch = {"image": jnp.asarray(image), ADVERSARIAL: jnp.ones(BATCH, bool)}
    after, metrics = jax.jit(step)(state, batch, KEY)
    keep_BK = np.asarray(SCALES.draw_kept(KEY, jnp.int32(STEP), BATCH))
    assert not keep_BK.all()
    return state, after, metrics, jnp.asarray(image / np.float32(127.5) - 1), keep_BK


@pytest.fixture(scope="module")
def of_tokenizer(stepped):
    """What the tokenizer pays, in parts, and the gradient; and the pictures that it made."""
    state, _, _, image, keep_BK = stepped

    def losses(params):
        pyramid: Any
        made, pyramid = TOKENIZER.apply({"params": params}, image, SCALES.schedule, jnp.asarray(keep_BK))
        # Every scale of every picture that uses it counts once.
        of_pairs = sum(
            kept.sum() * quantizer_loss(z[np.flatnonzero(kept)], "bsq")
            for z, kept in zip(pyramid.measured, keep_BK.T, strict=True)
        )
        parts = {
            "l1": jnp.abs(made - image).mean(),
            "features": l1_of_means(image, made),
            "quantizer": of_pairs / keep_BK.sum(),
            "adversarial": -judged(state.adversary.params, made).mean(),
        }
        # The second of four steps of the adversary's ramp.
        loss = (
            0.7 * parts["l1"] + 0.3 * parts["features"] + 4 * parts["quantizer"] + 0.25 * parts["adversarial"]
        )
        return loss, (parts, made)

    (loss, (parts, made)), grads = jax.jit(jax.value_and_grad(losses, has_aux=True))(state.params)
    return loss, parts, np.asarray(made), grads


@pytest.fixture(scope="module")
def of_discriminator(stepped, of_tokenizer):
    state, _, _, image, _ = stepped

    def loss_of(params):
        real, made = judged(params, image), judged(params, jnp.asarray(of_tokenizer[2]))
        hinge = jnp.maximum(0, 1 - real).mean() + jnp.maximum(0, 1 + made).mean()
        beyond = [jnp.maximum(0, abs(x.mean()) - 0.1) for x in (real, made)]
        assert len(beyond) == 2
        right = ((real > 0).mean() + (made <= 0).mean()) / 2
        return hinge / 2 + 0.7 * (beyond[0] ** 2 + beyond[1] ** 2), (right, beyond)

    (loss, (right, beyond)), grads = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(
        state.adversary.params
    )
    assert min(beyond) > 0
    return loss, right, grads


@pytest.mark.long
def test_metrics(stepped, of_tokenizer, of_discriminator):
    _, _, metrics, image, _ = stepped
    loss, parts, made, grads = of_tokenizer
    for name, value in parts.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(metrics["loss"], loss - 0.25 * parts["adversarial"], rtol=1e-4)
    squared = ((np.clip(made, -1, 1) - np.asarray(image)) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(metrics["psnr"], (10 * np.log10(4 / squared)).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["gradient_norm"], optax.tree.norm(grads), rtol=1e-3)
    np.testing.assert_allclose(metrics["adversarial_weight"], 0.25)
    np.testing.assert_allclose(metrics["discriminator"], of_discriminator[0], rtol=1e-4)
    np.testing.assert_allclose(metrics["discriminator_accuracy"], of_discriminator[1], rtol=1e-4)


def assert_taken_up(opt_state, grads):
    """Adam's moment after the first step is its share of the gradient, clipped by its norm."""
    norm = float(optax.tree.norm(grads))
    scale = (1 - OPTIM.b1) * min(1.0, OPTIM.clip / norm)
    jax.tree.map(
        lambda mean, g: np.testing.assert_allclose(mean / scale, g, atol=1e-4 * norm, rtol=1e-2),
        optax.tree.get(opt_state, "mu"),
        grads,
    )


def test_the_tokenizer_goes_down_its_losses_and_the_adversary_s(stepped, of_tokenizer):
    state, after, *_ = stepped
    assert_taken_up(after.opt_state, of_tokenizer[3])
    jax.tree.map(
        lambda mean, old, new: np.testing.assert_allclose(mean, old + (1 - 3 / 12) * (new - old), atol=1e-6),
        after.ema_params,
        state.params,
        after.params,
    )
    assert int(after.step) == STEP + 1


def test_the_discriminator_goes_down_its_own(stepped, of_discriminator):
    _, after, *_ = stepped
    assert_taken_up(after.adversary.opt_state, of_discriminator[2])
    assert int(after.adversary.step) == 2


def test_only_kernels_decay(stepped):
    """Here the rest is 1-D."""
    state, after = jax.device_get(stepped[:2])
    for before, now in ((state, after), (state.adversary, after.adversary)):
        mean, square = (optax.tree.get(now.opt_state, name) for name in ("mu", "nu"))

        def check(path, old, new, mean, square):
            step = mean / (1 - OPTIM.b1) / (np.sqrt(square / (1 - OPTIM.b2)) + 1e-8)
            decay = OPTIM.weight_decay * old * (path[-1].key == "kernel")
            np.testing.assert_allclose(new, old - OPTIM.learning_rate * (step + decay), atol=2e-6)

        jax.tree_util.tree_map_with_path(check, before.params, now.params, mean, square)
