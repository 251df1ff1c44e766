"""What a tokenizer trains on and against: scales, resolutions, a discriminator."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax import config_files
from infinity_jax.config import TokenizerConfig
from infinity_jax.errors import UserError
from infinity_jax.runtime import sharding
from infinity_jax.scales import dense_schedule
from infinity_jax.tokenizer import model
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.training import discriminator, optim, train_tokenizer
from infinity_jax.training import state as train_state
from infinity_jax.training.adversary import Adversary, with_adversary
from infinity_jax.training.discriminator import Discriminator, DiscriminatorConfig
from infinity_jax.training.state import TrainStep
from infinity_jax.training.tokenizer_losses import quantizer_loss
from infinity_jax.training.tokenizer_step import (
    ADVERSARIAL,
    TokenizerLossConfig,
    TrainingScales,
    make_train_step,
)

SIDE = 16
TOKENIZER = Tokenizer(
    TokenizerConfig(
        bits=8, base_width=32, multipliers=(1,), encoder_blocks=1, decoder_blocks=1, pixel_patch=4
    )
)
PLAIN_LOSS = TokenizerLossConfig(scale_drop=0.0)
OPTIM = optim.OptimConfig(learning_rate=1e-3, warmup_steps=1, ema_decay=0.9)


def l1_of_means(image, made):
    """A feature loss that compiles at once."""
    return jnp.abs(image.mean((1, 2)) - made.mean((1, 2))).mean()


@functools.cache
def adversarial(config: DiscriminatorConfig, loss=PLAIN_LOSS):
    """A small system with an adversary: its jitted step and its first state."""
    optimiser = optim.make_optimiser(OPTIM, 100)
    layout = sharding.layout_from_config(sharding.MeshSection())
    adversary = Adversary(config, optimiser)
    new_state = train_state.new_state(
        lambda: model.initial_variables(TOKENIZER, SIDE, 0), optimiser, True, layout
    )
    scales = {SIDE: TrainingScales(dense_schedule(4))}
    function = make_train_step(TOKENIZER, loss, OPTIM, optimiser, scales, l1_of_means, adversary)
    step = with_adversary(TrainStep(function, *new_state, layout), adversary, SIDE, 0)
    return jax.jit(function), jax.jit(step.new_state)()


@functools.cache
def tokenizer_step(scales: TrainingScales):
    """The jitted step of a small system without an adversary, and its first state."""
    optimiser = optim.make_optimiser(OPTIM, 100)
    loss = TokenizerLossConfig()
    function = make_train_step(TOKENIZER, loss, OPTIM, optimiser, {SIDE: scales}, l1_of_means)
    layout = sharding.layout_from_config(sharding.MeshSection())
    new_state = train_state.new_state(
        lambda: model.initial_variables(TOKENIZER, SIDE, 0), optimiser, True, layout
    )
    return jax.jit(function), jax.jit(new_state[0])()


def batch(seed=0):
    image = np.random.default_rng(seed).integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    return {"image": image, ADVERSARIAL: np.ones(4, bool)}


@pytest.mark.long
def test_the_quantiser_s_loss_is_a_mean_over_pictures_and_the_scales_they_use():
    """A picture that does not use a scale has no part in that scale's loss, and each pair of both weighs the same."""
    scales = TrainingScales(dense_schedule(4), drop=0.5)
    step, state = tokenizer_step(scales)
    image = batch()["image"]
    keep_BK = scales.draw_kept(jax.random.key(0), jnp.int32(0), len(image))
    assert not keep_BK.all()
    floats = jnp.asarray(image / np.float32(127.5) - 1)
    made: Any
    _, made = TOKENIZER.apply({"params": state.params}, floats, scales.schedule, keep_BK)
    pairs = [
        (z[kept], kept.sum())
        for z, kept in zip(made.measured, np.asarray(keep_BK).T, strict=True)
        if kept.any()
    ]
    losses = [float(quantizer_loss(z, "bsq")) for z, _ in pairs]
    _, metrics = step(state, {"image": image}, jax.random.key(0))
    wanted = np.average(losses, weights=[count for _, count in pairs])
    np.testing.assert_allclose(metrics["quantizer"], wanted, rtol=1e-5)


@pytest.mark.long
def test_an_adversarial_run_of_several_resolutions_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(train_tokenizer, "feature_loss", lambda loss, *_: l1_of_means)

    def run(workdir, steps):
        config = config_files.load("configs/emoji_tokenizer.py:debug", [f"--config.train.steps={steps}"])
        with config.unlocked():
            config.model.update(dict(multipliers=(1,), pixel_patch=8, decoder_blocks=1))
            config.data.mix = "32px=4,64px=2"
            config.train.adversarial = True
            config.discriminator.update(dict(base_width=32, layers=1, start_step="1"))
        return train_tokenizer.main(config, workdir)

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    resumed = run(tmp_path / "parts", 4)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    assert int(resumed.adversary.step) == 3
    assert int(run(tmp_path / "parts", 2).step) == 4, (
        "a run that has more steps than are asked for is left as it is"
    )


@pytest.mark.long
@pytest.mark.parametrize("loss", discriminator.LOSSES)
def test_an_adversarial_step_trains_both_networks(loss):
    step, state = adversarial(DiscriminatorConfig(base_width=32, layers=1, loss=loss))
    new, metrics = step(state, batch(), jax.random.key(0))
    assert int(new.step) == int(new.adversary.step) == 1
    for tree, other in ((new.params, state.params), (new.adversary.params, state.adversary.params)):
        assert any(
            not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (tree, other)), strict=True)
        )
    assert all(np.isfinite(value) for value in metrics.values())
    assert float(metrics["adversarial_weight"]) == pytest.approx(0.3)


@pytest.mark.parametrize("broken", ["params", "adversary"])
def test_both_networks_skip_a_step_in_which_one_has_a_gradient_that_is_not_finite(broken):
    step, state = adversarial(DiscriminatorConfig(base_width=32, layers=1))
    state, _ = step(state, batch(), jax.random.key(0))
    nan = functools.partial(jax.tree.map, lambda x: x * jnp.nan)
    if broken == "params":
        state = dataclasses.replace(state, params=nan(state.params))
    else:
        state = dataclasses.replace(
            state, adversary=dataclasses.replace(state.adversary, params=nan(state.adversary.params))
        )
    new, metrics = step(state, batch(1), jax.random.key(0))
    assert not np.isfinite(metrics["discriminator" if broken == "adversary" else "gradient_norm"])
    assert (int(new.step), int(new.adversary.step), int(new.skipped.steps)) == (2, 2, 1)
    for part in ("params", "opt_state", "ema_params"):
        jax.tree.map(np.testing.assert_array_equal, getattr(new, part), getattr(state, part))
        mine, before = (getattr(each.adversary, part) for each in (new, state))
        jax.tree.map(np.testing.assert_array_equal, mine, before)


@pytest.mark.long
def test_the_discriminator_learns_to_tell_made_pictures():
    step, state = adversarial(DiscriminatorConfig(base_width=32, layers=1, weight=0.0))
    for _ in range(25):
        state, metrics = step(state, batch(), jax.random.key(0))
    assert metrics["discriminator_accuracy"] > 0.9


def test_a_batch_without_the_adversary_s_key_changes_nothing_of_it():
    step, state = adversarial(DiscriminatorConfig(base_width=32, layers=1))
    new, metrics = step(state, {"image": batch()["image"]}, jax.random.key(0))
    assert int(new.step) == 1 and "adversarial" not in metrics
    jax.tree.map(np.testing.assert_array_equal, new.adversary, state.adversary)


@pytest.mark.long
def test_the_weight_grows_over_the_ramp():
    step, state = adversarial(DiscriminatorConfig(base_width=32, layers=1, ramp_steps=2))
    weights = []
    for _ in range(3):
        state, metrics = step(state, batch(), jax.random.key(0))
        weights.append(float(metrics["adversarial_weight"]))
    np.testing.assert_allclose(weights, [0.15, 0.3, 0.3], rtol=1e-6)


def test_the_discriminator_s_rate_is_its_share_of_the_run_s():
    config = optim.OptimConfig(learning_rate=1.0, warmup_steps=2, schedule="drop", drop_at=0.5)
    of_run, joined = optim.learning_rate(config, 100), optim.joining_rate(config, 100, start=40)
    np.testing.assert_allclose(joined(0), 0.5)
    for own in (1, 9, 10, 59):
        np.testing.assert_allclose(joined(own), of_run(own + 40))


@pytest.mark.long
@pytest.mark.parametrize("value", [0.0, 1e4, -1e4])
@pytest.mark.parametrize(("loss", "adaptive"), [("hinge", False), ("non-saturating", True)])
def test_training_survives_a_discriminator_that_says_the_same_of_every_picture(loss, adaptive, value):
    config = DiscriminatorConfig(base_width=32, layers=1, loss=loss, adaptive_weight=adaptive)
    step, state = adversarial(config)
    last = jax.tree.map(jnp.zeros_like, state.adversary.params["conv_out"])
    last = {**last, "bias": jnp.full_like(last["bias"], value)}
    collapsed = state.adversary.replace(params={**state.adversary.params, "conv_out": last})
    state = state.replace(adversary=collapsed)
    for seed in range(3):
        state, metrics = step(state, batch(seed), jax.random.key(0))
        assert all(np.isfinite(value) for value in metrics.values()), metrics
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.long
def test_the_adaptive_weight_makes_both_gradients_in_the_last_kernel_equally_large():
    config = DiscriminatorConfig(base_width=32, layers=1, weight=1.0, adaptive_weight=True)
    step, state = adversarial(config, TokenizerLossConfig(scale_drop=0.0, quantizer=0.0))
    image = jnp.asarray(batch()["image"].astype(np.float32) / 127.5 - 1)

    def parts(kernel):
        decoder = {
            **state.params["decoder"],
            "conv_out": {**state.params["decoder"]["conv_out"], "kernel": kernel},
        }
        made, _ = TOKENIZER.apply({"params": {**state.params, "decoder": decoder}}, image, dense_schedule(4))
        logits = jnp.asarray(Discriminator(config).apply({"params": state.adversary.params}, made))
        pictures = jnp.abs(made - image).mean() + TokenizerLossConfig().features * l1_of_means(image, made)
        return pictures, -logits.mean()

    kernel = state.params["decoder"]["conv_out"]["kernel"]
    gradients = jax.jit(jax.jacrev(parts))(kernel)
    sizes = [float(jnp.linalg.norm(gradient)) for gradient in gradients]
    _, metrics = step(state, batch(), jax.random.key(0))
    assert float(metrics["adversarial_weight"]) == pytest.approx(sizes[0] / (sizes[1] + 1e-4), rel=1e-4)


def test_what_the_discriminator_pays():
    real, made = jnp.full((2, 3, 3), 2.0), jnp.full((2, 3, 3), 0.5)
    hinge = DiscriminatorConfig(lecam=0.0)
    assert float(discriminator.discriminator_loss(hinge, real, made)) == pytest.approx(0.75)
    assert float(discriminator.made_loss(hinge, made)) == -0.5
    lecam = discriminator.discriminator_loss(dataclasses.replace(hinge, lecam=0.05), real, made)
    assert float(lecam) == pytest.approx(0.75 + 0.05 * (1.9**2 + 0.4**2))
    soft = DiscriminatorConfig(loss="non-saturating", lecam=0.0)
    expected = 0.5 * (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(0.5)))
    assert float(discriminator.discriminator_loss(soft, real, made)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(loss="wgan"), "unknown loss 'wgan'; use one of hinge"),
        (dict(base_width=48), "multiple of 32"),
        (dict(layers=0), "layers is 0; it must be a whole number from 1 to 10"),
        (dict(weight=-1.0), "weight is -1.0; it must be a number from 0"),
    ],
)
def test_a_wrong_discriminator_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        DiscriminatorConfig(**change)


def test_pictures_too_small_for_the_discriminator_are_refused():
    with pytest.raises(UserError, match=r"16x16 pixels are too small for discriminator\.layers 3"):
        jax.eval_shape(
            Discriminator(DiscriminatorConfig()).init, jax.random.key(0), jnp.zeros((1, 16, 16, 3))
        )


def test_the_rate_drops_once():
    config = optim.OptimConfig(
        learning_rate=1.0, warmup_steps=2, schedule="drop", final_fraction=0.1, drop_at=0.9
    )
    rate = optim.learning_rate(config, 100)
    np.testing.assert_allclose([rate(step) for step in (0, 1, 89, 90, 99)], [0.5, 1, 1, 0.1, 0.1], rtol=1e-6)


def test_lpips_without_its_weights_is_refused_and_the_bundled_network_offered():
    with pytest.raises(UserError, match=r"vgg16-397923af\.pth.*loss\.feature_network=efficientnet"):
        train_tokenizer.feature_loss(TokenizerLossConfig(feature_network="lpips"), TokenizerConfig())


def test_one_file_of_lpips_alone_is_refused_even_where_its_package_is_installed(monkeypatch):
    monkeypatch.setattr(train_tokenizer, "load_installed_lpips", dict)
    loss = TokenizerLossConfig(feature_network="lpips", lpips_weights="vgg.pth")
    with pytest.raises(UserError, match=r"or two files, loss\.vgg_weights"):
        train_tokenizer.feature_loss(loss, TokenizerConfig())


@pytest.mark.parametrize("mix", ["64px", "64px=0", "64px=x"])
def test_a_wrong_mix_of_resolutions_is_refused(mix):
    with pytest.raises(UserError, match="64px=16,96px=8"):
        train_tokenizer.resolution_mix(mix, "64px", 4)
    with pytest.raises(UserError, match="twice"):
        train_tokenizer.resolution_mix("64px=4,64px=2", "64px", 4)


def test_a_mix_of_resolutions_is_read():
    assert train_tokenizer.resolution_mix("0.06M=256, 1M=64", "0.06M", 9) == {"0.06M": 256, "1M": 64}
    assert train_tokenizer.resolution_mix("", "64px", 16) == {"64px": 16}
