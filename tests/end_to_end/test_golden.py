"""Numbers that the public PyTorch release produced, from the folder that `--golden` names.

Every test takes its sizes and settings from the folder, and there are tests for the files that are there.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden_cases import ARGUMENTS, read_folder
from helpers.golden_folder import (
    SINGLE_LAYER,
    WHOLE_MODEL,
    GoldenFolder,
    assert_close,
    channels_last,
    join,
    nearest_ratio,
)
from helpers.golden_models import (
    GoldenModels,
    by_published_name,
    compiled_gradients,
    compiled_logits,
    forward_values,
    logit_ties_taken_from,
    read_loss,
    residual_ties_taken_from,
    sampler_config,
    sampler_inputs,
)

from infinity_jax import scales
from infinity_jax.sampling import sampler
from infinity_jax.tokenizer import pyramid, resize
from infinity_jax.tokenizer.bsq import BSQ
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.tokenizer.pyramid import to_tokenizer
from infinity_jax.training import correction, tokenizer_losses
from infinity_jax.transformer.kernels import matmul as products
from infinity_jax.transformer.rope2d import rope_table

RESIZES = {
    "area": resize.area,
    "trilinear": resize.bilinear,
    "bilinear": resize.bilinear,
    "bicubic": resize.bicubic,
}


def pytest_generate_tests(metafunc):
    folder = read_folder(metafunc.config.getoption("golden"))
    for argument in ARGUMENTS.keys() & set(metafunc.fixturenames):
        named = dict(ARGUMENTS[argument](folder))
        metafunc.parametrize(argument, named.values(), ids=named.keys())


@pytest.fixture(scope="module")
def folder(pytestconfig) -> GoldenFolder:
    return read_folder(pytestconfig.getoption("golden"))


@pytest.fixture(scope="module")
def models(folder, tmp_path_factory) -> GoldenModels:
    return GoldenModels(folder, tmp_path_factory.mktemp("converted"))


def test_every_file_is_of_a_known_kind(folder):
    assert not [file.name for file in folder.of_kind("unknown")]


def test_weights_are_the_same_in_every_file(duplicates, models):
    kind, prefix, files = duplicates
    first, *others = (models.converted(file, kind, prefix) for file in files)
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first, other)


def test_every_ratio_and_budget(schedules):
    table = schedules.info["dynamic_resolution_h_w"]
    assert len(table) == len(scales.aspect_ratios())
    for ratio, budgets in table.items():
        assert budgets.keys() == scales.BUDGETS.keys()
        for budget, given in budgets.items():
            ours = scales.make_schedule(budget, nearest_ratio(float(ratio)))
            assert [list(size) for size in ours.sizes] == [[h, w] for _, h, w in given["scales"]], (
                ratio,
                budget,
            )
            assert ours.length == given["seq_len_t1"]
            assert [16 * n for n in ours.last] == given["pixel"]


def test_resizing(resizing):
    file, case = resizing
    before, after = (channels_last(file.arrays[f"{case['name']}_{side}"]) for side in ("in", "out"))
    resized = RESIZES[case["mode"]]
    assert_close(resized(jnp.asarray(before), tuple(case["size_out"])), after, SINGLE_LAYER, case["name"])


def test_quantiser(quantiser):
    """Bits of every scale, and the straight-through gradient of their sum."""
    arrays, schedule = quantiser.arrays, quantiser.schedule
    given = tuple(arrays[f"bits_{k}"][:, 0].astype(bool) for k in range(schedule.n_scales))

    @jax.jit
    def quantise(features, cotangent, given):
        def sum_and_bits(features):
            out = pyramid.quantise(features, schedule)
            return out.running_sum_BHWd, out.symbols

        with residual_ties_taken_from(given):
            running_sum, pull_back, bits = jax.vjp(sum_and_bits, features, has_aux=True)
        return running_sum, bits, pull_back(cotangent)[0]

    cotangent = channels_last(arrays["cotangent"])
    running_sum, bits, gradient = quantise(quantiser.features_BHWd(), cotangent, given)
    np.testing.assert_array_equal(join(bits), join(given))
    assert_close(running_sum, channels_last(arrays["quantized"]), SINGLE_LAYER, "running sum")
    assert_close(gradient, channels_last(arrays["grad_features"]), SINGLE_LAYER, "gradient")


def test_running_sum_of_every_scale(quantiser):
    """The release's own record of it: resized by area to the next scale (which no model reads)."""
    schedule = quantiser.schedule

    @jax.jit
    def sums_at_next_scales(bits):
        running_sums = [pyramid.sum_of_codes(bits[: k + 1], schedule.last) for k in range(len(bits))]
        return [resize.area(x, size) for x, size in zip(running_sums, schedule.sizes[1:], strict=False)]

    bits = tuple(quantiser.arrays[f"bits_{k}"][:, 0].astype(bool) for k in range(schedule.n_scales))
    for k, ours in enumerate(sums_at_next_scales(bits)):
        if f"var_input_{k}" in quantiser.arrays:
            reference = channels_last(quantiser.arrays[f"var_input_{k}"])
            assert_close(ours, reference, SINGLE_LAYER, f"running sum of scale {k}")


def test_entropy(entropy):
    file, temperature = entropy
    z = jnp.asarray(file.arrays["entropy_z"])

    def penalty(z):
        terms = tokenizer_losses.bsq_entropies(z, float(temperature))
        return terms[0] - terms[1], jnp.stack(terms)

    gradient, terms = jax.jit(jax.grad(penalty, has_aux=True))(z)
    given = file.arrays[f"entropy_T{temperature}"]
    for ours, reference, name in zip(terms, given, ("of each token", "of the mean"), strict=True):
        assert_close(ours, reference, SINGLE_LAYER, f"entropy {name}")
    assert_close(gradient, file.arrays[f"entropy_T{temperature}_grad_z"], SINGLE_LAYER, "gradient")


@functools.cache
def compiled_correction(schedule: scales.ScaleSchedule, patchify: int):
    @jax.jit
    def correct(features, flips, given):
        with residual_ties_taken_from(given):
            return correction.self_correction(features, flips, schedule, BSQ, True, patchify)

    return correct


def test_self_correction(corrected):
    """The transformer's inputs and labels, for the given flips."""
    file, prefix = corrected
    arrays, schedule = file.arrays, file.schedule
    flips = tuple(mask & (prefix != "noflip_") for mask in file.flips())
    if prefix:
        labels = np.concatenate([arrays[f"{prefix}gt_bits_{k}"] for k in range(schedule.n_scales)], 1)
    else:
        labels = arrays["gt_bits"]
    by_scale = zip(np.split(labels.astype(bool), schedule.offsets[1:-1], 1), schedule.sizes, strict=True)
    given = tuple(
        to_tokenizer(jnp.asarray(bits).reshape(len(bits), *size, -1), file.patchify)
        for bits, size in by_scale
    )
    correct = compiled_correction(schedule, file.patchify)
    our_inputs, our_labels = correct(file.features_BHWd(), flips, given)
    np.testing.assert_array_equal(our_labels, labels)
    assert_close(our_inputs, arrays[f"{prefix}x_BLC_wo_prefix"], SINGLE_LAYER, "inputs")


def test_autoencoder(autoencoder, models):
    system, arrays = models.of(autoencoder), autoencoder.arrays
    tokenizer = Tokenizer(system.tokenizer)
    run = jax.jit(
        lambda params, x, method: tokenizer.apply({"params": params}, x, method=method), static_argnums=2
    )
    image = channels_last(arrays["image_u8"]).astype(np.float32) / 255 * 2 - 1
    features = run(system.tokenizer_params, image, "encode")
    assert_close(features, channels_last(arrays["features"]), WHOLE_MODEL, "features")
    codes = channels_last(arrays["codes"])
    raw = run(system.tokenizer_params, codes, lambda tokenizer, codes: tokenizer.decoder(codes))
    assert_close(raw, channels_last(arrays["decoded_raw"]), WHOLE_MODEL, "decoded, not clipped")
    decoded = run(system.tokenizer_params, codes, "decode")
    assert_close(decoded, channels_last(arrays["decoded"]), WHOLE_MODEL, "decoded")


def test_transformer(intermediate, models):
    file, name = intermediate
    system, given = models.of(file), file.arrays[name]
    tolerance = SINGLE_LAYER
    if name == "rope_cos_sin":
        ours = np.stack(rope_table(file.schedule, system.transformer.head_size))
    elif match := re.fullmatch(r"logits(?:_drop(\d+))?", name):
        dropped = np.arange(len(file.info["lens"])) == int(match[1] or -1)
        ours, tolerance = compiled_logits(system.transformer, file)(system.weights, dropped), WHOLE_MODEL
    else:
        ours = forward_values(models, file)[name]
        if re.fullmatch("head_nm_out|after_block.*|block[1-9].*", name):
            tolerance = WHOLE_MODEL
    if ours.ndim == 3 and given.shape[1] != ours.shape[1]:
        ours = ours[:, :: file.info["position_stride"]]
    assert_close(ours, given, tolerance, name)


def test_gradients(loss, models, folder):
    """The norm of every parameter's gradient, and the gradients that the file holds."""
    file, name = loss
    forward, given = folder.forward_of(file), file.info["losses"][name]
    config, params = models.of(forward)[:2]
    all_losses = {name: read_loss(name, values, config.bits) for name, values in file.info["losses"].items()}
    run = compiled_gradients(config, forward, tuple(all_losses.values()))
    value, gradient = run(params, all_losses[name])
    gradient = by_published_name(config, gradient, given["grad_norm"])
    assert_close(value, given["loss"], WHOLE_MODEL, "loss")
    assert gradient.keys() == given["grad_norm"].keys()
    total = given["total_grad_norm"]
    ours = np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in gradient.values()))
    assert_close(ours, total, WHOLE_MODEL, "norm of the whole gradient")
    for parameter, reference in given["grad_norm"].items():
        ours = np.linalg.norm(gradient[parameter].astype(np.float64))
        # Where a gradient vanishes by itself, what is left is rounding of the others.
        allowed = WHOLE_MODEL * reference + np.finfo(np.float32).eps * total
        assert abs(ours - reference) <= allowed, f"{parameter}: norm {ours:.8g} instead of {reference:.8g}"
    for key, reference in file.arrays.items():
        if key.startswith(f"{name}/"):
            parameter = key.removeprefix(f"{name}/")
            assert_close(gradient[parameter], reference, WHOLE_MODEL, f"gradient of {parameter}")


def test_bfloat16_between_products(folder, models, monkeypatch):
    """The form of TPUs and GPUs, forced on the CPU: the release's float32 logits and gradients up to rounding."""
    monkeypatch.setattr(products, "platform", lambda: "tpu")
    for file in folder.of_kind("gradients")[:1]:
        forward, (name, given) = folder.forward_of(file), next(iter(file.info["losses"].items()))
        config, params = models.of(forward)[:2]
        low = dataclasses.replace(config, compute_dtype="bfloat16")
        loss = read_loss(name, given, config.bits)
        if "logits" in forward.arrays and loss.dropped is None:
            logits = compiled_logits(low, forward)(params, np.zeros(len(forward.info["lens"]), bool))
            reference = forward.arrays["logits"]
            if reference.shape[1] != logits.shape[1]:
                logits = logits[:, :: forward.info["position_stride"]]
            assert np.linalg.norm(logits - reference) < 0.02 * np.linalg.norm(reference)
        _, gradient = compiled_gradients(low, forward, (loss,))(params, loss)
        gradient = by_published_name(config, gradient, given["grad_norm"])
        compared = {
            key.removeprefix(f"{name}/"): x for key, x in file.arrays.items() if key.startswith(f"{name}/")
        }
        assert compared
        for parameter, reference in compared.items():
            error = np.linalg.norm(gradient[parameter] - reference)
            assert error <= 0.06 * np.linalg.norm(reference) + 1e-3 * given["total_grad_norm"], parameter


@pytest.mark.long
def test_sampling(sampling, models, monkeypatch):
    """Bits and logits of every scale, the sum of codes that the tokenizer's decoder gets, and the picture."""
    arrays, system = sampling.arrays, models.of(sampling)
    config, inputs = sampler_config(sampling, system.transformer, system.tokenizer), sampler_inputs(sampling)

    @jax.jit
    def draw(params, inputs, given_BLd):
        with logit_ties_taken_from(given_BLd, config.schedule.offsets) as differences:
            return sampler.draw(config, params, inputs), differences

    drawn, differences = draw(system.weights, inputs, arrays["bits"].astype(bool))
    np.testing.assert_array_equal(join(drawn.bits), arrays["bits"])
    if "logits" in arrays:
        reference = arrays["logits"][..., 1] - arrays["logits"][..., 0]
        assert_close(np.concatenate(differences, 1), reference, WHOLE_MODEL, "differences of logits")
    if "summed_codes" in arrays:
        codes = channels_last(arrays["summed_codes"])
        assert_close(drawn.running_sum_BHWd, codes, SINGLE_LAYER, "summed codes")
    if "image_u8_bgr" in arrays:
        # The rest of the sampler, on what was drawn already: to compile that a second time takes long.
        monkeypatch.setattr(sampler, "draw", lambda config, drawn, *_: drawn)
        picture = sampler.make_sampler.__wrapped__(config)(drawn, system.tokenizer_params, inputs)
        difference = np.asarray(picture, int) - arrays["image_u8_bgr"][..., ::-1]
        assert np.abs(difference).max() <= 1
