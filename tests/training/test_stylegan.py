"""StyleGAN's discriminator and what BSQ-ViT's recipe adds to a step; its numbers are in test_golden_bsq_vit."""

import dataclasses
import gzip
import json
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.golden_bsq_vit import our_path
from helpers.paths import GOLDEN

from infinity_jax.errors import UserError
from infinity_jax.training import adversary, discriminator, optim, stylegan
from infinity_jax.training import state as train_state
from infinity_jax.training.discriminator import DiscriminatorConfig
from infinity_jax.training.optim import OptimConfig
from infinity_jax.training.tokenizer_step import TokenizerLossConfig

CONFIG = DiscriminatorConfig("stylegan", loss="non-saturating", lecam=0.0, channel_base=64, channel_max=8)
NETWORK: Any = discriminator.network_of(CONFIG)


@pytest.fixture(scope="module")
def pictures():
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 8, 3)), jnp.float32)


@pytest.fixture(scope="module")
def params(pictures):
    return nn.meta.unbox(jax.jit(NETWORK.init)(jax.random.key(0), pictures[0])["params"])


def test_the_published_discriminator_has_these_parameters():
    network: Any = discriminator.network_of(DiscriminatorConfig("stylegan"))
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((4, 256, 256, 3)))["params"]
    ours = {
        jax.tree_util.keystr(path, simple=True, separator="/"): x.shape
        for path, x in jax.tree.leaves_with_path(nn.meta.unbox(shapes))
    }
    released = json.loads(gzip.decompress((GOLDEN / "names" / "stylegan_256.json.gz").read_bytes()))
    published = {name: shape for name, shape in released.items() if not name.endswith("resample_filter")}
    order = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
    expected = {our_path(name): tuple(x[i] for i in order[len(x)]) for name, x in published.items()}
    assert ours == expected
    assert sum(map(math.prod, ours.values())) == 28_864_129


def test_pictures_of_other_sizes_and_odd_batches_are_refused(params):
    for shape, message in (
        ((4, 12, 12, 3), "12x12 does not reach; use a side that is a power of two"),
        ((4, 4, 4, 3), "4x4 does not reach"),
        ((4, 8, 16, 3), "8x16 does not reach"),
        ((6, 8, 8, 3), r"in groups of 4, and 6 are none; use a batch size that is a multiple of 4"),
    ):
        with pytest.raises(UserError, match=message):
            jax.eval_shape(lambda shape=shape: NETWORK.apply({"params": params}, jnp.zeros(shape)))
    few: Any = discriminator.network_of(dataclasses.replace(CONFIG, channel_base=32))
    with pytest.raises(UserError, match="channel_base 32 leaves no channel at a side of 64"):
        few.init(jax.random.key(0), jnp.zeros((4, 64, 64, 3)))
    with pytest.raises(UserError, match=r"made for pictures of one size, and data\.mix has 32, 64 pixels"):
        adversary.check_sides(adversary.Adversary(CONFIG, optax.sgd(1.0)), [32, 64])
    adversary.check_sides(adversary.Adversary(DiscriminatorConfig(), optax.sgd(1.0)), [32, 64])


def test_pictures_are_compared_within_groups_of_four():
    """Picture j of 8 belongs to group j mod 2; equal ones differ by nothing."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=(8, 2, 2, 3)), jnp.float32).at[1::2].set(1.0)
    channel = np.asarray(stylegan.deviation(x))
    assert channel.shape == (8, 2, 2, 1)
    expected = np.sqrt(np.asarray(x[::2]).var(0) + 1e-8).mean()
    np.testing.assert_allclose(channel[::2], expected, rtol=1e-5)
    np.testing.assert_allclose(channel[1::2], 1e-4, rtol=1e-3)


@pytest.mark.parametrize("step", [2, 3])
def test_the_penalty_is_in_every_fourth_step(params, pictures, step):
    """It is added to the gradient there, as many times its weight as there are steps without it."""
    plain, punished = (dataclasses.replace(CONFIG, r1=r1, r1_every=4) for r1 in (0.0, 10.0))
    own = train_state.TrainState(jnp.int32(step), params, None, None)

    def gradients(config):
        opponent = adversary.Adversary(config, optax.sgd(1.0))
        return adversary.discriminator_gradients(opponent, own, *pictures)

    (without, metrics), (grads, seen) = gradients(plain), gradients(punished)
    assert "r1" not in metrics and (float(seen["r1"]) > 0) == (step == 3)

    def penalty(params):
        return discriminator.squared_slope(
            lambda images: NETWORK.apply({"params": params}, images), pictures[0]
        )

    added = jax.grad(penalty)(own.params)
    factor = 10 / 2 * 4 if step == 3 else 0.0
    expected = jax.tree.map(lambda a, b: a + factor * b, without, added)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, expected)


def test_the_weight_of_the_quantiser_falls_evenly():
    loss = TokenizerLossConfig(quantizer=0.1, quantizer_start=0.3, quantizer_ramp=4)
    assert [float(loss.quantizer_at(jnp.int32(step))) for step in (0, 2, 4, 9)] == pytest.approx(
        [0.3, 0.2, 0.1, 0.1]
    )
    with pytest.raises(UserError, match=r"quantizer_start 0\.3 without loss\.quantizer_ramp"):
        TokenizerLossConfig(quantizer_start=0.3)
    assert TokenizerLossConfig(quantizer=0.5).quantizer_at(jnp.int32(0)) == 0.5


def test_every_parameter_is_decayed_where_it_is_asked_for():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    for decay_all, bias in ((False, 0.0), (True, -0.1)):
        config = OptimConfig(1.0, warmup_steps=0, weight_decay=0.1, decay_all=decay_all)
        optimiser = optim.make_optimiser(config, 10)
        updates: Any = optimiser.update(zero, optimiser.init(params), params)[0]
        np.testing.assert_allclose(updates["kernel"], -0.1, rtol=1e-6)
        np.testing.assert_allclose(updates["bias"], bias, rtol=1e-6)
