"""Numbers that the public release of VAR produced, from the folder that `--golden` names, if it is one of VAR.

Every test takes its sizes and settings from the folder, and there are tests for the files that are there.
"""

import functools
import re
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden_cases import go_through, system_folder
from helpers.golden_folder import SINGLE_LAYER, WHOLE_MODEL, assert_close, channels_last
from helpers.golden_var import (
    VarModels,
    assert_norms,
    by_published_name,
    drawn,
    joined,
    phi_names,
    quantizer_of,
    sampler_of,
    schedule_of,
    split,
    texts,
)
from helpers.transformer_values import values_on_the_way

from infinity_jax.sampling import head_index, kept_tokens
from infinity_jax.sampling.bits import DrawSettings
from infinity_jax.sampling.given import Given
from infinity_jax.tokenizer import pyramid, vq
from infinity_jax.tokenizer.autoencoder import AttentionBlock
from infinity_jax.tokenizer.convolution import Arithmetic
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.tokenizer.model import quantizer_of as quantizer_of_tokenizer
from infinity_jax.tools.convert.tokenizer_names import tokenizer_links
from infinity_jax.tools.convert.transformer_names import transformer_links
from infinity_jax.training.transformer_losses import code_loss
from infinity_jax.transformer.transformer import Transformer

KINDS = {
    "phis": "phi_of_scale",
    "masks": "var_masks",
    "quantiser": "var_quantiser",
    "autoencoder": "var_autoencoder",
    "forward": "var_forward",
    "gradients": "var_gradients",
    "sampling": "var_sampling",
    "edit": "var_edit",
}


def pytest_generate_tests(metafunc):
    go_through(metafunc, "var", KINDS)


@pytest.fixture(scope="module")
def models(pytestconfig, tmp_path_factory) -> VarModels:
    return VarModels(system_folder(pytestconfig, "var"), tmp_path_factory.mktemp("converted"))


def test_convolutions_of_scales(phis):
    for name, given in phis.info["phi_of_scale"].items():
        shared, n_scales = name.removeprefix("share").split("_K")
        assert list(vq.phi_of_scale(int(n_scales), int(shared))) == given, name


def test_what_top_k_and_top_p_leave(masks):
    logits = jnp.asarray(masks.arrays["logits"])
    for case in masks.info["cases"]:
        one = jnp.ones(len(logits))
        # 0 switches top_p off in the release, where ours has 1.
        top_p = case["top_p"] or 1.0
        settings = DrawSettings(jnp.zeros(len(logits), jnp.uint32), one, one * top_p, 0)
        kept = head_index.kept(logits, settings, case["top_k"])
        np.testing.assert_array_equal(kept, masks.arrays[f"{case['name']}_kept"], case["name"])
        probabilities = jax.nn.softmax(jnp.where(kept, logits, -jnp.inf), -1)
        reference = masks.arrays[f"{case['name']}_probabilities"]
        assert_close(probabilities, reference, SINGLE_LAYER, case["name"])


@pytest.mark.long
def test_quantiser(quantiser):
    """Codes of every scale, their sums, the transformer's inputs, the loss, and gradients."""
    c, arrays = quantiser.info["config"], quantiser.arrays
    schedule, quantizer = schedule_of(c), quantizer_of(quantiser)
    features, cotangent = (jnp.asarray(channels_last(arrays[name])) for name in ("features", "cotangent"))

    @jax.jit
    def measured(features, quantizer):
        out = vq.quantise(features, schedule, quantizer, c["beta"])
        return (cotangent * out.running_sum_BHWd).mean() + out.measured, out

    gradients, out = jax.grad(measured, (0, 1), has_aux=True)(features, quantizer)
    np.testing.assert_array_equal(joined(out.symbols), arrays["indices"])
    assert_close(out.measured, arrays["loss"], SINGLE_LAYER, "loss")
    assert_close(gradients[0], channels_last(arrays["grad_features"]), SINGLE_LAYER, "gradient of features")
    by_name = {"embedding.weight": gradients[1].codebook_VZ}
    for number, name in enumerate(phi_names(c["share_quant_resi"], schedule.n_scales)):
        by_name[f"quant_resi.{name}.weight"] = gradients[1].phi_kernels[number].transpose(3, 2, 0, 1)
        by_name[f"quant_resi.{name}.bias"] = gradients[1].phi_biases[number]
    for name, gradient in by_name.items():
        assert_close(gradient, arrays[f"grad/{name}"], SINGLE_LAYER, f"gradient of {name}")
    sums = [
        pyramid.sum_of_codes(out.symbols[: k + 1], schedule.last, quantizer) for k in range(len(out.symbols))
    ]
    middle = schedule.n_scales // 2
    for name, ours in {"first": sums[0], "middle": sums[middle], "last": sums[-1]}.items():
        assert_close(ours, channels_last(arrays[f"fhat_{name}"]), SINGLE_LAYER, f"sum after the {name} scale")
    inputs = [
        quantizer.next_input(x, size).reshape(len(x), -1, x.shape[-1])
        for x, size in zip(sums, schedule.sizes[1:], strict=False)
    ]
    assert_close(jnp.concatenate(inputs, 1), arrays["var_input"], SINGLE_LAYER, "inputs")


@pytest.mark.long
def test_autoencoder(autoencoder, models):
    """Features, codes and pictures, one attention block alone, and a training step's gradients."""
    arrays, c, system = autoencoder.arrays, autoencoder.info["vae_config"], models.of(autoencoder)
    module, params, schedule = Tokenizer(system.tokenizer), system.tokenizer_params, schedule_of(c)
    run = jax.jit(
        lambda params, x, method: module.apply({"params": params}, x, method=method), static_argnums=2
    )
    image = jnp.asarray(channels_last(arrays["image_u8"]).astype(np.float32) / 255 * 2 - 1)
    features, codes = channels_last(arrays["features"]), channels_last(arrays["fhat"])
    encoded = run(params, image, lambda tokenizer, x: tokenizer.encoder(x))
    assert_close(encoded, channels_last(arrays["encoded"]), WHOLE_MODEL, "encoded")
    assert_close(run(params, image, "encode"), features, WHOLE_MODEL, "features")
    quantizer: Any = quantizer_of_tokenizer(system.tokenizer, params, schedule.n_scales)
    out = vq.quantise(jnp.asarray(features), schedule, quantizer)
    np.testing.assert_array_equal(joined(out.symbols), arrays["indices"])
    assert_close(out.running_sum_BHWd, codes, SINGLE_LAYER, "sum of codes")
    raw = run(params, jnp.asarray(codes[:1]), lambda tokenizer, x: tokenizer.decoder(tokenizer.latent_out(x)))
    assert_close(raw, channels_last(arrays["decoded_raw"]), WHOLE_MODEL, "decoded, not clipped")
    first = pyramid.sum_of_codes(out.symbols[:1], schedule.last, quantizer)
    for name, ours in {"decoded_u8": jnp.asarray(codes), "decoded_scale0_u8": first[:1]}.items():
        decoded = (np.asarray(run(params, ours, "decode")) + 1) / 2 * 255
        difference = decoded.astype(np.uint8).astype(int) - channels_last(arrays[name])
        assert np.abs(difference).max() <= 1, name
    attention = AttentionBlock(Arithmetic.of(system.tokenizer))
    in_the_middle = {"params": params["encoder"]["mid_attention"]}
    seen = attention.apply(in_the_middle, jnp.asarray(channels_last(arrays["attn_in"])))
    assert_close(seen, channels_last(arrays["attn_out"]), SINGLE_LAYER, "attention")

    def loss(params):
        made, quantised = cast(Any, module.apply)({"params": params}, image, schedule, commitment=c["beta"])
        error = made - image
        return jnp.square(error).mean() + 0.2 * jnp.abs(error).mean() + quantised.measured, quantised.measured

    given = autoencoder.info["loss"]
    (value, of_quantiser), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert_close(value, given["value"], WHOLE_MODEL, "loss")
    assert_close(of_quantiser, given["quantiser_loss"], WHOLE_MODEL, "quantiser's loss")
    assert_norms(by_published_name(gradient, tokenizer_links(system.tokenizer, False)), given["grad_norm"])


def test_transformer(forward, models):
    """Logits, and values on the way, those of which there is each so many positions."""
    arrays, system, stride = forward.arrays, models.of(forward), forward.info["position_stride"]
    model: Any = Transformer(system.transformer)
    schedule = system.transformer.learned_schedule
    text, inputs = texts(arrays["label_B"]), jnp.asarray(arrays["x_BLCv_wo_first_l"])
    logits = jax.jit(lambda params: model.apply({"params": params}, inputs, *text, schedule))(system.params)
    assert_close(logits, arrays["logits"], WHOLE_MODEL, "logits")
    ours = values_on_the_way(system.transformer, system.params, schedule, text, inputs)
    not_between = {"label_B", "x_BLCv_wo_first_l", "gt_indices", "logits"}
    for name in arrays.keys() - not_between:
        value = ours[name.replace("_attn_", "_sa_")]
        if value.ndim == 3 and value.shape[1] == schedule.length:
            value = value[:, ::stride]
        deep = re.fullmatch("head_nm_out|after_block.*|block[1-9].*", name)
        assert_close(value, arrays[name], WHOLE_MODEL if deep else SINGLE_LAYER, name)


@functools.cache
def losses_of(config, schedule, n_scales: int, label_smoothing: float):
    """(params, labels, inputs, codes, factor of the newest scale) -> loss and gradient, of the first scales."""
    part = schedule.prefix(n_scales)

    @jax.jit
    def run(params, labels, inputs, codes, newest):
        def loss(params):
            text = texts(labels)
            logits = cast(Any, Transformer(config).apply)(
                {"params": params}, inputs[:, : part.length - 1], *text, part
            )
            factors = jnp.ones(n_scales).at[-1].set(newest) * part.length / schedule.length
            return code_loss(logits, codes[:, : part.length], part, "uniform", label_smoothing, factors)[0]

        return jax.value_and_grad(loss)(params)

    return run


@pytest.mark.long
def test_gradients(gradients, models):
    """Losses, the norm of every parameter's gradient, and the gradients that the file holds."""
    forward = next(
        file
        for file in models.folder.of_kind("var_forward")
        if file.name == gradients.name.replace("_grads", "_forward")
    )
    system, arrays = models.of(gradients), forward.arrays
    schedule = system.transformer.learned_schedule
    for name, given in gradients.info["losses"].items():
        newest = given["prog_si"] + 1 if given["prog_si"] >= 0 else schedule.n_scales
        run = losses_of(system.transformer, schedule, newest, given["label_smoothing"])
        inputs = jnp.asarray(arrays["x_BLCv_wo_first_l"]), jnp.asarray(arrays["gt_indices"])
        value, gradient = run(system.params, np.array(given["labels"]), *inputs, given["prog_wp"])
        assert_close(value, given["loss"], WHOLE_MODEL, f"{name}: loss")
        gradient = by_published_name(gradient, transformer_links(system.transformer, 0))
        untouched = set(given["without_gradient"])
        norms = given["grad_norm"]
        assert_norms({k: v for k, v in gradient.items() if k in norms}, norms)
        assert gradient.keys() == norms.keys() | untouched
        for key, reference in gradients.arrays.items():
            parameter = key.removeprefix(f"{name}/")
            if parameter in gradient and parameter != key:
                assert_close(gradient[parameter], reference, WHOLE_MODEL, f"{name}: gradient of {parameter}")


def assert_picture(picture, file) -> None:
    difference = np.asarray(picture).astype(int) - channels_last(file.arrays["image_u8"])
    assert np.abs(difference).max() <= 1


@pytest.mark.long
def test_sampling(sampling, models, monkeypatch):
    """Codes of every scale, or mixes of them with the given noise; the sum of codes; the picture."""
    arrays, info, system = sampling.arrays, sampling.info, models.of(sampling)
    if not info["more_smooth"]:
        config, inputs = sampler_of(sampling, system)
        out, picture = drawn(config, system, inputs)
        np.testing.assert_array_equal(joined(out.bits), arrays["indices"])
        assert_close(out.running_sum_BHWd, channels_last(arrays["fhat"]), SINGLE_LAYER, "sum of codes")
        assert_picture(picture(), sampling)
        return
    config, inputs = sampler_of(sampling, system, top_k=info["top_k"], smooth=True)
    inputs = inputs._replace(
        tau_BK=jnp.ones_like(inputs.tau_BK), top_p_B=jnp.full_like(inputs.top_p_B, info["top_p"] or 1.0)
    )
    offsets, noise = config.schedule.offsets, jnp.asarray(arrays["gumbel"])
    given = lambda shape, seeds, scale: noise[:, offsets[scale] : offsets[scale + 1]]  # noqa: E731
    monkeypatch.setattr(head_index, "gumbel", given)
    out, picture = drawn(config, system, inputs)
    shares = np.concatenate([np.asarray(x).reshape(len(x), -1, x.shape[-1]) for x in out.bits], 1)
    assert np.abs(shares - arrays["probabilities"]).max() <= 1e-3
    assert_close(out.running_sum_BHWd, channels_last(arrays["fhat"]), 1e-3, "sum of codes")
    assert_picture(picture(), sampling)


@pytest.mark.long
def test_editing(edit, models):
    """Tokens of a given picture stay where the mask says, and the rest is drawn."""
    arrays, system = edit.arrays, models.of(edit)
    config, inputs = sampler_of(edit, system)
    schedule = config.schedule
    box, inpainting = edit.info["box_y0_x0_y1_x1"], edit.info["inpainting"]
    mask = kept_tokens.outside_box(tuple(box), schedule.last, invert=not inpainting)
    np.testing.assert_array_equal(mask, arrays["edit_mask"])
    kept = kept_tokens.kept_by_scale(jnp.asarray(mask), schedule)
    np.testing.assert_array_equal(joined(kept)[0], arrays["kept"])
    given = tuple(map(jnp.asarray, split(arrays["input_indices"], schedule)))
    inputs = inputs._replace(given=Given(kept, given))
    out, picture = drawn(config, system, inputs)
    expected = np.where(arrays["kept"].astype(bool), arrays["input_indices"], arrays["drawn"])
    np.testing.assert_array_equal(joined(out.bits), expected)
    assert_close(out.running_sum_BHWd, channels_last(arrays["fhat"]), SINGLE_LAYER, "sum of codes")
    assert_picture(picture(), edit)
