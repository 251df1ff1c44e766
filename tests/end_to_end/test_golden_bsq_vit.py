"""Numbers that the public release of BSQ-ViT produced, from the folder that `--golden` names, if it is one of it.

Every test takes its sizes and settings from the folder, and there are tests for the files that are there.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden_bsq_vit import (
    BsqVitModels,
    discriminator_params,
    indices,
    of_quantiser,
    of_vit,
    one_scale,
    our_path,
)
from helpers.golden_cases import go_through, system_folder
from helpers.golden_folder import SINGLE_LAYER, TIE, WHOLE_MODEL, assert_close, channels_last
from helpers.golden_var import assert_norms, by_published_name
from safetensors.numpy import load_file

from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import halves, vq
from infinity_jax.tokenizer.bsq import BinaryQuantizer
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.tools.convert.tokenizer_names import tokenizer_links
from infinity_jax.training import discriminator, optim, tokenizer_losses
from infinity_jax.training.discriminator import DiscriminatorConfig
from infinity_jax.training.tokenizer_step import TokenizerLossConfig

KINDS = {
    "quantiser": "bsq_quantiser",
    "codebook": "vq_quantiser",
    "vit": "bsq_vit",
    "stylegan": "stylegan_discriminator",
    "schedules": "bsq_schedules",
}


def pytest_generate_tests(metafunc):
    go_through(metafunc, "bsq_vit", KINDS)


@pytest.fixture(scope="module")
def models(pytestconfig, tmp_path_factory) -> BsqVitModels:
    return BsqVitModels(system_folder(pytestconfig, "bsq_vit"), tmp_path_factory.mktemp("converted"))


def test_quantiser(quantiser):
    """Codes, indices, both entropies, the loss, and gradients through codes and loss."""
    c, arrays = quantiser.info["config"], quantiser.arrays
    name, weights, h = "bsq" if c["l2_norm"] else "lfq", of_quantiser(c), jnp.asarray(arrays["h"])
    quantizer = BinaryQuantizer(name, scaled_gradient=True)
    z = quantizer.project(h)
    assert_close(z, arrays["z"], SINGLE_LAYER, "projected")
    bits = np.asarray(quantizer.choose(z))
    clear = np.abs(arrays["z"]) > TIE
    np.testing.assert_array_equal(bits[clear], arrays["zq"][clear] > 0)
    assert_close(quantizer.look_up(jnp.asarray(arrays["zq"] > 0)), arrays["zq"], SINGLE_LAYER, "codes")
    if "indices" in arrays:
        np.testing.assert_array_equal(indices(bits, c["embed_dim"])[..., 0], arrays["indices"])
    np.testing.assert_array_equal(indices(bits, c["group_size"]), arrays["group_indices"])

    # The release's soft bits are of z times the size of a code; ours are of a sphere's.
    size = 1.0 if name == "bsq" else c["embed_dim"] ** 0.5

    def entropies(z):
        return jnp.stack(tokenizer_losses.bsq_entropies(z * size, weights.inverse_temperature, weights.group))

    assert_close(entropies(z), arrays["entropies"], SINGLE_LAYER, "entropies")
    largest = np.abs(arrays["entropies"]).max()

    def loss(h):
        z = quantizer.project(h)
        if name == "bsq":
            return tokenizer_losses.quantizer_loss(z, name, weights)
        first, second = entropies(z)
        commitment = jnp.square(z - jax.lax.stop_gradient(quantizer.look_up(z > 0))).mean()
        entropy = weights.entropy * (first - weights.gamma * second) / weights.inverse_temperature
        return weights.commitment * commitment + entropy

    def objective(h):
        codes = quantizer.straight_through(quantizer.project(h))
        return jnp.mean(jnp.asarray(arrays["cotangent"]) * codes) + loss(h)

    assert abs(float(loss(h)) - float(arrays["loss"])) <= SINGLE_LAYER * largest
    of_loss = np.asarray(jax.grad(loss)(h))
    scale = max(np.abs(arrays["grad_h_loss"]).max(), np.abs(arrays["grad_h"]).max())
    assert np.abs(of_loss - arrays["grad_h_loss"]).max() <= WHOLE_MODEL * scale
    assert_close(jax.grad(objective)(h), arrays["grad_h"], WHOLE_MODEL, "gradient")


def test_codebook(codebook):
    """The release's quantiser of a codebook, which sums over channels where ours takes means."""
    c, arrays = codebook.info["config"], codebook.arrays
    sphere, d = c["l2_norm"], c["embed_dim"]
    length = arrays["z"].shape[1]
    schedule = ScaleSchedule(((1, length),), (1, length))

    def run(z, codes):
        quantizer = vq.VectorQuantizer(codes, share=0.0, by_cosine=sphere, sphere=sphere)
        out = vq.quantise(z[:, None], schedule, quantizer, c["beta"])
        return jnp.mean(jnp.asarray(arrays["cotangent"]) * out.running_sum_BHWd[:, 0]) + d * out.measured, out

    inputs = jnp.asarray(arrays["z"]), jnp.asarray(arrays["codebook"])
    (_, out), gradients = jax.value_and_grad(run, (0, 1), has_aux=True)(*inputs)
    np.testing.assert_array_equal(np.asarray(out.symbols[0])[:, 0], arrays["indices"])
    assert_close(out.running_sum_BHWd[:, 0], arrays["zq"], SINGLE_LAYER, "codes")
    assert_close(d * out.measured, arrays["loss"], SINGLE_LAYER, "loss")
    for name, gradient in zip(("grad_z", "grad_codebook"), gradients, strict=True):
        assert_close(gradient, arrays[name], WHOLE_MODEL, name)


def test_tokenizer(vit, models):
    """Features, bits, what is decoded, values on the way, the loss and the gradient of every parameter."""
    c, arrays, (config, params) = vit.info["config"], vit.arrays, models.of(vit)
    module: Any = Tokenizer(config)
    image = jnp.asarray(channels_last(arrays["image_u8"]).astype(np.float32) / 127.5 - 1)
    side, schedule = config.side // config.stride, one_scale(config)

    def flat(x):
        return np.asarray(x).reshape(len(x), -1, x.shape[-1])

    assert_close(
        flat(module.apply({"params": params}, image, method="encode")), arrays["h"], WHOLE_MODEL, "h"
    )
    codes = jnp.asarray(arrays["zq"]).reshape(len(image), side, side, -1)
    decoded = module.apply({"params": params}, codes, method=lambda tokenizer, x: tokenizer.decoder(x))
    given = channels_last(arrays["decoded_raw"])
    assert_close(decoded, given, WHOLE_MODEL, "decoded")
    picture = np.asarray(module.apply({"params": params}, codes, method="decode"))
    expected = channels_last(arrays["reconstruction"])
    if config.laplace:
        assert_close(
            halves.pixel_loss(config, jnp.asarray(given), image),
            arrays["logit_laplace_loss"],
            WHOLE_MODEL,
            "laplace",
        )
        picture = (picture + 1) / 2
    assert_close(picture, expected, WHOLE_MODEL, "picture")

    (_, pyramid), kept = module.apply(
        {"params": params}, image, schedule, capture_intermediates=True, mutable=["intermediates"]
    )
    assert_close(flat(pyramid.measured[0]), arrays["z"], WHOLE_MODEL, "z")
    bits = flat(pyramid.symbols[0])
    np.testing.assert_array_equal(indices(bits, c["embed_dim"])[..., 0], arrays["indices"])
    np.testing.assert_array_equal(indices(bits, c["group"]), arrays["group_indices"])
    stride = vit.info["position_stride"]
    for half in ("encoder", "decoder"):
        body: Any = kept["intermediates"][half]["body"]
        after = {"ln_pre": body["norm_in"]["__call__"][0], "ln_post": body["norm_out"]["__call__"][0]}
        after |= {f"block{i}": x for i, x in enumerate(body["blocks"]["__call__"][0][0])}
        for name, ours in after.items():
            reference = arrays[f"{half}_after_{name}"]
            assert_close(ours[:, ::stride], reference, WHOLE_MODEL, f"{half} after {name}")
    hidden = np.tanh(np.asarray(kept["intermediates"]["decoder"]["fc1"]["__call__"][0]))
    assert_close(hidden[:, ::stride], arrays["decoder_after_tanh"], WHOLE_MODEL, "after tanh")

    def loss(params):
        decoded, pyramid = module.apply({"params": params}, image, schedule)
        made = jnp.clip(halves.shown(config, decoded), -1, 1)
        of_bits = tokenizer_losses.quantizer_loss(pyramid.measured[0], "bsq", of_vit(c))
        # The release's pictures of a laplace model are in [0, 1].
        pixels = jnp.abs(made - image).mean() / (2 if config.laplace else 1)
        total = pixels + 0.1 * of_bits
        return total + 0.05 * halves.pixel_loss(config, decoded, image) if config.laplace else total

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert_close(value, vit.info["loss"]["value"], WHOLE_MODEL, "loss")
    ours = by_published_name(gradient, tokenizer_links(config))
    assert_norms(ours, vit.info["loss"]["grad_norm"])
    for name in arrays:
        if name.startswith("grad/"):
            assert_close(ours[name.removeprefix("grad/")], arrays[name], WHOLE_MODEL, name)


def adversary(c: dict[str, Any], loss: str = "non-saturating") -> DiscriminatorConfig:
    """The release's discriminator and its losses."""
    return DiscriminatorConfig(
        "stylegan", loss=loss, lecam=0.0, channel_base=c["channel_base"], channel_max=c["channel_max"]
    )


def test_discriminator(stylegan, models):
    """Logits, values after blocks, both pairs of losses, gradients, and R1 as a working one has it."""
    arrays, info = stylegan.arrays, stylegan.info
    config, losses = adversary(info["config"]), info["losses"]
    network: Any = discriminator.network_of(config)
    weights = next(file for file in models.folder.files if file.name == info["weights"])
    tensors = load_file(models.folder.path / f"{weights.name}_fp16.safetensors")
    params = discriminator_params(tensors)
    real, made = (jnp.asarray(channels_last(arrays[name])) for name in ("real", "fake"))

    logits_real, kept = network.apply(
        {"params": params}, real, capture_intermediates=True, mutable=["intermediates"]
    )
    for name in arrays:
        if name.startswith("after_b"):
            ours = kept["intermediates"][name.replace("after_b", "block_")]["__call__"][0]
            reference = channels_last(arrays[name])
            assert_close(ours[: len(reference)], reference, WHOLE_MODEL, name)
    assert_close(logits_real, arrays["logits_real"][:, 0], WHOLE_MODEL, "logits of real pictures")
    logits_made = network.apply({"params": params}, made)
    assert_close(logits_made, arrays["logits_fake"][:, 0], WHOLE_MODEL, "logits of made pictures")
    for name, loss in (("vanilla", "non-saturating"), ("hinge", "hinge")):
        of = adversary(info["config"], loss)
        assert_close(discriminator.made_loss(of, logits_made), losses[f"{name}_g"], WHOLE_MODEL, name)
        found = discriminator.discriminator_loss(of, logits_real, logits_made)
        assert_close(found, losses[f"{name}_d"], WHOLE_MODEL, name)

    def judged(params, pictures):
        return network.apply({"params": params}, pictures)

    def fooled(made):
        return discriminator.made_loss(config, judged(params, made))

    to_made = np.moveaxis(np.asarray(jax.jit(jax.grad(fooled))(made)), -1, 1)
    assert_close(to_made, arrays["grad_fake"], WHOLE_MODEL, "gradient in made pictures")

    def seen_through(params):
        return discriminator.discriminator_loss(config, judged(params, real), judged(params, made))

    def penalty(params):
        return discriminator.squared_slope(lambda pictures: judged(params, pictures), real)

    published = [name for name in tensors if not name.endswith("resample_filter")]
    for loss, key in ((seen_through, "vanilla_d_grad_norm"), (penalty, "r1_grad_norm")):
        value, gradient = jax.jit(jax.value_and_grad(loss))(params)
        if loss is penalty:
            assert_close(value, losses["r1"], WHOLE_MODEL, "r1")
        flat = {
            jax.tree_util.keystr(p, simple=True, separator="/"): x
            for p, x in jax.tree.leaves_with_path(gradient)
        }
        assert_norms({name: np.asarray(flat[our_path(name)]) for name in published}, info[key])


def test_schedules(schedules):
    """The quantiser's weight, the R1 steps and the sum of losses; the learning rate."""
    c = schedules.info["totals_config"]
    loss = TokenizerLossConfig(
        quantizer=c["codebook_weight"],
        quantizer_start=c["codebook_weight"] * c["codebook_rampup_multiplier"],
        quantizer_ramp=c["ramp"],
    )
    every = DiscriminatorConfig("stylegan", r1=float(c["disc_reg_r1"]), r1_every=c["disc_reg_freq"])
    for given in schedules.info["totals"]:
        step = jnp.int32(given["step"])
        weight = float(cast(Any, loss.quantizer_at(step)))
        assert weight == pytest.approx(given["gradient_of_quantizer_loss"], rel=1e-5)
        total = given["train/nll_loss"] + c["disc_weight"] * given["train/g_loss"]
        assert total + weight * c["quantizer_loss"] == pytest.approx(given["generator_loss"], rel=1e-5)
        penalty = 0.0
        if discriminator.r1_due(every, step):
            penalty = every.r1 / 2 * every.r1_every * given["train/disc_r1_loss"]
            assert penalty == pytest.approx(given["train/disc_r1_loss_scale"], rel=1e-5)
        assert ("train/disc_r1_loss" in given) <= bool(discriminator.r1_due(every, step))
        assert given["train/disc_loss"] + penalty == pytest.approx(given["discriminator_loss"], rel=1e-5)
    for given in schedules.info["learning_rate"]:
        config = optim.OptimConfig(
            learning_rate=given["lr_max"],
            warmup_steps=given["warm_up_steps"],
            warmup_start=given["lr_start"],
            schedule="cosine",
            final_fraction=given["lr_min"],
        )
        rate = optim.learning_rate(config, given["max_decay_steps"])
        for step, factor in zip(given["steps"], given["factors"], strict=True):
            assert float(rate(step)) == pytest.approx(factor, rel=1e-5), step
