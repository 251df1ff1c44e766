"""A whole step of the transformer against the same written out plainly: draws, loss, gradient, AdamW, average."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.arbitrary_params import arbitrary_params

from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.runtime import seeds
from infinity_jax.scales import ScaleSchedule
from infinity_jax.training import correction, optim, transformer_step
from infinity_jax.training import state as train_state
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.transformer_step import LossConfig, StepConfig
from infinity_jax.transformer.transformer import Transformer, draw_path_factors

SCHEDULE = ScaleSchedule(((1, 1), (2, 2), (3, 2)), (3, 2))
MODEL = TransformerConfig(
    layers=2, width=64, heads=4, bits=4, text_channels=128, text_length=8, drop_path=0.5, compute_dtype="float32"
)  # fmt: skip
OPTIM = optim.OptimConfig(learning_rate=1e-2, warmup_steps=4, weight_decay=0.3, clip=0.05, ema_decay=0.9)
CONFIG = StepConfig(
    MODEL,
    TokenizerConfig(bits=4),
    CorrectionConfig(p=0.5),
    LossConfig(label_smoothing=0.1, caption_drop=0.5),
    OPTIM,
    steps=100,
    microbatches=2,
)
KEY, STEP, BATCH = jax.random.key(3), 3, 4


def cross_entropies(logits_BLd2, bits_BLd, smoothing):
    """Of every token, the mean of its bits: float32 [B,L]."""
    target = jax.nn.one_hot(bits_BLd, 2) * (1 - smoothing) + smoothing / 2
    return -(target * jax.nn.log_softmax(logits_BLd2)).sum(-1).mean(-1)


def plain_loss(params, batch):
    """Draws and loss of step `STEP`."""
    flips = correction.draw_flips(seeds.stream(KEY, "flip bits", STEP), SCHEDULE, BATCH, 4, CONFIG.correction)
    inputs, bits = correction.self_correction(batch["features"], flips, SCHEDULE)
    drop = jax.random.bernoulli(seeds.stream(KEY, "caption drop", STEP), 0.5, (BATCH,))
    empty = params["text"]["empty_caption"][: batch["text"].shape[1]]
    text = jnp.where(drop[:, None, None], empty, batch["text"])
    factors = draw_path_factors(MODEL, seeds.stream(KEY, "drop path", STEP), BATCH)
    arguments = inputs, text, batch["text_mask"], SCHEDULE, None, factors
    logits = jnp.asarray(Transformer(MODEL).apply({"params": params}, *arguments))
    weights_L = np.repeat(1 / np.sqrt(SCHEDULE.tokens), SCHEDULE.tokens)
    return cross_entropies(logits, bits, 0.1).mean(0) @ (weights_L / weights_L.sum()), drop


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(1)
    return {
        "features": jnp.asarray(random.standard_normal((BATCH, *SCHEDULE.last, 4)), jnp.float32),
        "text": jnp.asarray(random.standard_normal((BATCH, 5, 128)), jnp.float32),
        "text_mask": jnp.arange(5)[None] < jnp.array([[5], [2], [3], [4]]),
        "valid": jnp.array([True, True, False, True]),
    }


@pytest.fixture(scope="module")
def stepped(batch):
    """The state before step 3, the state after it, its metrics; and loss and gradients written out plainly."""
    params = arbitrary_params(MODEL, SCHEDULE)
    state = train_state.create(params, CONFIG.optimiser, ema=True)
    state = dataclasses.replace(state, step=jnp.int32(STEP))
    after, metrics = jax.jit(transformer_step.make_train_step(CONFIG, SCHEDULE))(state, batch, KEY)
    (loss, drop), grads = jax.jit(jax.value_and_grad(plain_loss, has_aux=True))(params, batch)
    assert 0 < drop.sum() < BATCH
    return jax.device_get((state, after, metrics, loss, grads))


@pytest.mark.long
def test_loss_and_gradient_are_those_of_the_step_s_draws(stepped):
    _, after, metrics, loss, grads = stepped
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)
    assert norm > OPTIM.clip
    # What AdamW takes up is the gradient, clipped by its norm.
    scale = (1 - OPTIM.b1) * OPTIM.clip / norm
    jax.tree.map(
        lambda mean, g: np.testing.assert_allclose(mean / scale, g, atol=2e-5 * norm, rtol=1e-3),
        optax.tree.get(after.opt_state, "mu"),
        grads,
    )


def test_the_update_is_adamw_s_and_decays_linear_maps_alone(stepped):
    before, after = stepped[:2]
    mean, square = (optax.tree.get(after.opt_state, name) for name in ("mu", "nu"))
    kinds = set()

    def check(path, old, new, average, mean, square):
        kind = path[-1].key
        step = mean / (1 - OPTIM.b1) / (np.sqrt(square / (1 - OPTIM.b2)) + 1e-8)
        decay = OPTIM.weight_decay * old * (kind == "kernel")
        # The first of four steps of warm-up.
        np.testing.assert_allclose(
            new, old - OPTIM.learning_rate / 4 * (step + decay), atol=1e-6, err_msg=kind
        )
        np.testing.assert_allclose(average, old + (1 - 4 / 13) * (new - old), atol=1e-6)
        assert not np.array_equal(old, new)
        kinds.add(kind)

    jax.tree_util.tree_map_with_path(check, before.params, after.params, after.ema_params, mean, square)
    assert kinds >= {
        "adaln_table",
        "kernel",
        "bias",
        "norm_scale",
        "log_scale",
        "scale_embedding",
        "empty_caption",
        "start_position",
        "query",
    }
    assert int(after.step) == STEP + 1


def test_an_evaluation_has_no_flips_and_counts_valid_pictures_alike(batch, stepped):
    params = stepped[0].params
    evaluate = transformer_step.make_eval_step(Transformer(MODEL), SCHEDULE, CONFIG.tokenizer)

    @jax.jit
    def plain(params):
        no_flips = tuple(jnp.zeros((BATCH, *size, 4), bool) for size in SCHEDULE.sizes)
        inputs, bits = correction.self_correction(batch["features"], no_flips, SCHEDULE)
        arguments = inputs, batch["text"], batch["text_mask"], SCHEDULE
        logits = jnp.asarray(Transformer(MODEL).apply({"params": params}, *arguments))
        right = (logits.argmax(-1) == bits).mean((1, 2))
        return cross_entropies(logits, bits, 0.0).mean(1), right

    loss_B, right_B = (np.asarray(x)[[0, 1, 3]] for x in plain(params))
    metrics = evaluate(params, batch)
    np.testing.assert_allclose(metrics["loss"], loss_B.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["bit_accuracy"], right_B.mean(), rtol=1e-5)


# Every kind of parameter but the kernels of linear maps, as a name's last part.
NOT_DECAYED = (
    *("bias", "scale", "log_scale", "norm_scale", "cross_norm_scale", "cross_norm_bias", "query"),
    *("adaln_table", "empty_caption", "start_position", "scale_embedding", "position_embedding"),
)


@pytest.mark.parametrize("kind", ["kernel", *NOT_DECAYED])
def test_of_all_kinds_of_parameters_kernels_alone_decay(kind):
    """With a gradient of zero nothing but the decay moves a parameter; those of blocks are stacked, so none is 1-D."""
    params = {"blocks": {"part": {kind: np.ones((2, 3), np.float32)}}}
    optimiser = CONFIG.optimiser
    zeros = jax.tree.map(np.zeros_like, params)
    updates: Any
    updates, _ = optimiser.update(zeros, optimiser.init(params), params)
    moved = np.asarray(updates["blocks"]["part"][kind])
    np.testing.assert_allclose(moved, -0.3 * 0.25e-2 if kind == "kernel" else 0.0, rtol=1e-6)


@pytest.mark.parametrize("head", ["bits", "index"])
@pytest.mark.parametrize("learned", [False, True])
def test_every_parameter_is_of_a_kind_that_is_known(head, learned):
    """So a new one must be thought of: is it decayed?"""
    config = dataclasses.replace(MODEL, head=head, **({"positions": "learned:64px"} if learned else {}))
    schedule = config.learned_schedule or SCHEDULE
    shapes = jax.eval_shape(lambda: transformer_step.init_variables(config, KEY, schedule)["params"])
    names = {path[-2].key for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}
    assert names <= {"kernel", *NOT_DECAYED}


def test_a_batch_runs_the_step_of_its_shape():
    other = ScaleSchedule(((1, 1), (2, 3)), (2, 3))
    step = transformer_step.of_ratio(
        [SCHEDULE, other, other], 2, lambda schedule: lambda *given: (schedule, given)
    )
    for schedule, shape in ((SCHEDULE, (6, 4)), (other, (4, 6))):
        batch = {"features": np.zeros((1, *shape, 4))}
        assert step(None, batch, 7) == (schedule, (None, batch, 7))
