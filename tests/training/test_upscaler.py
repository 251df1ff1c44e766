"""Training of an upscaler: both stages to a folder that draws, resumed bit for bit, and what is refused."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import systems, upscalers
from PIL import Image

from infinity_jax.checkpoints import pretrained
from infinity_jax.checkpoints.opened import open_checkpoint
from infinity_jax.checkpoints.trained import TrainedTokenizer
from infinity_jax.data.degradation import operations
from infinity_jax.errors import UserError
from infinity_jax.sampling.upscaling import UpscalePipeline, UpscaleRequest
from infinity_jax.scales import make_schedule
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.training import correction, train_upscaler, upscaler_losses
from infinity_jax.upscaler.network import problem_with


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A system, and a folder of pictures with captions."""
    world = tmp_path_factory.mktemp("world")
    systems.write_system(world / "system")
    random = np.random.default_rng(0)
    for i in range(24):
        rough = random.uniform(0, 1, (4, 4, 3)).astype(np.float32)
        image = (operations.resized(rough, (16, 16), "bilinear") * 255).astype(np.uint8)
        target = world / "pictures" / ("red" if i % 2 else "blue") / f"{i}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(target)
    return world


def config(world, *changes):
    return upscalers.config(world / "system", world / "pictures", *changes)


@pytest.fixture(scope="module")
def stage_1(world):
    train_upscaler.main(config(world), world / "stage_1")
    return world / "stage_1"


@pytest.mark.long
def test_both_stages_end_in_a_folder_that_draws(world, stage_1, tmp_path):
    evaluated = json.loads((stage_1 / "evaluations.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(evaluated["validation_loss"])
    started = f"train.init_from={stage_1}"
    train_upscaler.main(config(world, "stage=2", started, "correction.p=0.2"), tmp_path / "stage_2")
    before, after = (open_checkpoint(path) for path in (stage_1, tmp_path / "stage_2"))
    assert before.has_upscaler and after.origin("transformer")["stage"] == 2
    base = open_checkpoint(world / "system").model().params
    jax.tree.map(np.testing.assert_array_equal, before.model().params, base)
    changed = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), after.model().params, base)
    assert any(jax.tree.leaves(changed))
    pretrained.export(str(tmp_path / "stage_2"), tmp_path / "out", "float32")
    request = UpscaleRequest([Image.new("RGB", (8, 8), "red")], ["red"])
    trained, exported = (
        UpscalePipeline.from_pretrained(path)(request)[0] for path in (tmp_path / "stage_2", tmp_path / "out")
    )
    np.testing.assert_array_equal(trained, exported)


@pytest.mark.long
@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_resumed_is_undisturbed_bit_for_bit(world, stage_1, stage, tmp_path):
    changes = ["stage=2", f"train.init_from={stage_1}", "correction.p=0.2"] if stage == 2 else []
    whole = train_upscaler.main(config(world, *changes), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        killed = train_upscaler.loop._Loop.after_step

        def after_step(self, step, *arguments):
            killed(self, step, *arguments)
            if step == 3:
                raise KeyboardInterrupt

        patch.setattr(train_upscaler.loop._Loop, "after_step", after_step)
        train_upscaler.main(config(world, *changes), tmp_path / "parts")
    parts = train_upscaler.main(config(world, *changes), tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, parts.params, whole.params)
    jax.tree.map(np.testing.assert_array_equal, parts.opt_state, whole.opt_state)


def test_perfect_predictions_give_the_labels_of_self_correction():
    """With the true residuals as predictions all is as in the transformer's own training without flips."""
    schedule = make_schedule("32px")
    features = jax.random.normal(jax.random.key(0), (2, *schedule.times(2).last, 3))
    targets = upscaler_losses.residuals(features, schedule.times(2), 2)
    inputs, bits = upscaler_losses.given_correction(features, targets, None, schedule, patchify=2)
    wanted_inputs, wanted_bits = correction.self_correction(features, None, schedule, patchify=2)
    np.testing.assert_allclose(inputs, wanted_inputs, atol=1e-6)
    np.testing.assert_array_equal(bits, wanted_bits.astype(bool))
    loss, metrics = upscaler_losses.residual_loss(targets, targets)
    assert float(loss) == 0 and float(metrics["bit_accuracy"]) == 1


def test_gradients_reach_predictions_but_through_flips():
    schedule = make_schedule("32px")
    features = jax.random.normal(jax.random.key(0), (1, *schedule.times(2).last, 3))
    predicted = tuple(
        jax.random.normal(jax.random.key(k), (1, *size, 3))
        for k, size in enumerate(schedule.times(2).sizes[:3])
    )
    weights = jax.random.normal(jax.random.key(9), (1, schedule.length - 1, 12))

    def objective(predicted, flips):
        inputs, _ = upscaler_losses.given_correction(features, predicted, flips, schedule, patchify=2)
        return jnp.sum(weights * inputs)

    none = tuple(jnp.zeros(x.shape, bool) for x in predicted[:2])
    gradient, flipped = (jax.grad(objective)(predicted, flips) for flips in (None, none))
    assert all(float(jnp.abs(x).max()) > 0 for x in gradient)
    assert [float(jnp.abs(x).max()) > 0 for x in flipped] == [False, False, True]


def test_later_scales_alone_are_judged():
    schedule = make_schedule("32px")
    length = schedule.length
    logits = jax.random.normal(jax.random.key(0), (1, length, 12, 2))
    bits = jax.random.bernoulli(jax.random.key(1), 0.5, (1, length, 12))
    loss, metrics = upscaler_losses.later_bit_loss(logits, bits, schedule, 2)
    first = schedule.offsets[2]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), bits[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(loss, -chosen[:, first:].mean(), rtol=1e-6)
    assert metrics["loss_per_scale"].shape == (schedule.n_scales - 2,)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["stage=2"], "give --config.train.init_from"),
        (["stage=3"], "stage is 3"),
        (["upscaler.bits=4"], "upscaler.bits is 4"),
        (["upscaler.sizes=(2,6)"], "not the first scales"),
        (["system="], "config.system is ''"),
        (["degradation.jpeg=best"], "jpeg"),
        (["data.mix=32px=2"], "data.mix"),
        (["upscaler.factor=3"], "does not divide"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(world, tmp_path, changes, said):
    made = config(world)
    for change in changes:
        name, value = change.split("=", 1)
        section, _, key = name.rpartition(".")
        target = made[section] if section else made
        target[key] = type(target[key])(eval(value)) if isinstance(target[key], tuple | int) else value
    with pytest.raises(UserError, match=said):
        train_upscaler.main(made, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_system_whose_tokenizer_changed_is_noticed(world, stage_1):
    note = stage_1 / "system.json"
    kept = note.read_text()
    try:
        note.write_text(json.dumps(json.loads(kept) | {"tokenizer": "0" * 24}))
        with pytest.raises(UserError, match="has another tokenizer than when"):
            open_checkpoint(stage_1).model()
    finally:
        note.write_text(kept)


def test_stages_of_two_systems_are_not_mixed(world, stage_1, tmp_path):
    other = dataclasses.replace(systems.TOKENIZER, base_width=64)
    params = systems.initial_params(Tokenizer(other), 16, seed=7)
    system = open_checkpoint(world / "system").model()
    system = dataclasses.replace(system, tokenizer=TrainedTokenizer(other, params, "32px", {}))
    pretrained.save_model(tmp_path / "other", system)
    changes = "stage=2", f"train.init_from={stage_1}", f"system={tmp_path / 'other'}"
    with pytest.raises(UserError, match=r"another tokenizer than config\.system"):
        train_upscaler.main(config(world, *changes), tmp_path / "mixed")
    with pytest.raises(UserError, match="began with another tokenizer"):
        train_upscaler.main(config(world, f"system={tmp_path / 'other'}", "train.steps=6"), stage_1)


def test_what_does_not_belong_to_a_system_has_its_reason():
    schedule, tokenizer = make_schedule("32px"), systems.TOKENIZER

    def problem(head: str = "bits", quantizer: str = "bsq", **changes: Any) -> str:
        own = dataclasses.replace(tokenizer, quantizer=quantizer, codes=8 if quantizer == "vq" else 0)
        return problem_with(dataclasses.replace(upscalers.CONFIG, **changes), own, head, schedule)

    assert problem() == ""
    assert "does not divide the 16 pixels" in problem(factor=3)
    assert "predicts bits" in problem(quantizer="vq") and "predicts bits" in problem(head="index")
    assert "upscaler.bits is 4" in problem(bits=4)
    everything = tuple(h for h, _ in schedule.times(2).sizes)
    n = len(everything)
    whole = problem(sizes=everything, widths=(16,) * n, layers=(1,) * n, heads=(2,) * n)
    assert "at least one more" in whole
