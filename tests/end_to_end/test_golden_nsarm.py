"""Numbers that NSARM's public code produced, from the folder that `--golden` names, if it is one of it.

Every test takes its sizes and settings from the folder, and there are tests for the files that are there.
"""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import unflatten_dict
from helpers.golden_cases import go_through, system_folder
from helpers.golden_folder import (
    SINGLE_LAYER,
    TIE,
    WHOLE_MODEL,
    assert_close,
    channels_last,
    join,
)
from helpers.golden_models import (
    GoldenModels,
    by_published_name,
    logit_ties_taken_from,
    residual_ties_taken_from,
    sampler_config,
    sampler_inputs,
)
from helpers.golden_nsarm import KINDS, Upscalers, full_size_value, to_tokens

from infinity_jax.data import pictures
from infinity_jax.files.tensors import open_tensors
from infinity_jax.presets import UPSCALERS
from infinity_jax.runtime import trees
from infinity_jax.sampling import sampler, scale_pass
from infinity_jax.sampling.given import Given
from infinity_jax.tokenizer import pyramid
from infinity_jax.tokenizer.bsq import BSQ
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.tools.convert.convert import to_torch
from infinity_jax.tools.convert.links import Link, our_shapes
from infinity_jax.tools.convert.upscaler_names import PREFIX, upscaler_links
from infinity_jax.training import upscaler_losses
from infinity_jax.transformer.transformer import Transformer
from infinity_jax.upscaler.network import UpscalerNetwork, given_bits, to_map


def pytest_generate_tests(metafunc):
    go_through(metafunc, "nsarm", KINDS)


@pytest.fixture(scope="module")
def folder(pytestconfig):
    return system_folder(pytestconfig, "nsarm")


@pytest.fixture(scope="module")
def models(folder, tmp_path_factory) -> GoldenModels:
    return GoldenModels(folder, tmp_path_factory.mktemp("converted"))


@pytest.fixture(scope="module")
def upscalers(folder, tmp_path_factory) -> Upscalers:
    return Upscalers(folder, tmp_path_factory.mktemp("converted"))


def run(config, params, features):
    """The maps of all scales, and the values on the way."""
    network = UpscalerNetwork(config)
    with jax.default_matmul_precision("highest"):
        maps, state = jax.jit(
            lambda params, features: network.apply({"params": params}, features, mutable="intermediates")
        )(params, features)
    return maps, state["intermediates"]


def bits_but_for_ties(maps, given):
    """The bits of predicted residuals [B,h,w,d], the release's where a normalised one is within `TIE` of zero."""
    projected = [BSQ.project(z) for z in maps]
    return [
        np.where(np.abs(z) < TIE, theirs, np.asarray(z) > 0)
        for z, theirs in zip(projected, given, strict=True)
    ]


def test_network(network, models, upscalers):
    """The low-quality picture's features, values on the way, what each scale gives, and its bits."""
    arrays, config = network.arrays, upscalers.config
    system = models.of(network)
    image = pictures.to_float(arrays["lq_image_u8"])[None]
    encoded = Tokenizer(system.tokenizer).apply(
        {"params": system.tokenizer_params}, jnp.asarray(image), method="encode"
    )
    assert_close(encoded, channels_last(arrays["features"]), SINGLE_LAYER, "features")
    for suffix in ("", "_random"):
        features = channels_last(arrays[f"features{suffix}"])
        maps, between = run(config, upscalers.params, features)
        if f"extracted{suffix}" in arrays:
            extracted = channels_last(arrays[f"extracted{suffix}"])
            assert_close(between["extracted"][0], extracted, SINGLE_LAYER, "extracted")
        for i, made in enumerate(maps):
            if not suffix and f"pooled_{i}" in arrays:
                pooled, theirs = between[f"scale_{i}"]["pooled"][0], channels_last(arrays[f"pooled_{i}"])
                assert_close(pooled, theirs.reshape(pooled.shape), SINGLE_LAYER, f"pooled {i}")
            tokens = to_tokens(made, config.layout)
            assert_close(tokens, arrays[f"map_out{suffix}_{i}"], SINGLE_LAYER, f"scale {i}")
            np.testing.assert_array_equal(to_map(jnp.asarray(tokens), config.layout), made)
            if not suffix:
                theirs = channels_last(arrays[f"bits_{i}"]) > 0
                (ours,) = bits_but_for_ties([made], [theirs])
                np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_network_of_the_released_size(network_full_size):
    config = UPSCALERS["nsarm"]
    ours: dict = {}
    for link in cast(list[Link], upscaler_links(config)):
        value = full_size_value(link.published.removeprefix(PREFIX), link.published_shape)
        for path, array in zip(link.ours, link.to_ours(value), strict=True):
            ours.setdefault(path, []).append(array)
    shapes = our_shapes(upscaler_links(config))
    flat = {path: np.stack(x) if len(x) > 1 else x[0].reshape(shapes[path]) for path, x in ours.items()}
    assert sum(x.size for x in flat.values()) == network_full_size.info["parameters"]
    features = channels_last(network_full_size.arrays["features"])
    maps, _ = run(config, unflatten_dict(flat, sep="/"), features)
    for i, made in enumerate(maps):
        tokens = to_tokens(made, config.layout)
        assert_close(tokens, network_full_size.arrays[f"map_out_{i}"], WHOLE_MODEL, f"scale {i}")


def test_weights_there_and_back(network, folder, upscalers, tmp_path):
    """All published values are given back, and the transformer beside them is converted without them."""
    assert upscalers.params  # converted
    to_torch(str(tmp_path / "back.safetensors"), str(upscalers.workdir / "upscaler"), "upscaler")
    (weights,) = folder.path.glob("*_transformer_fp16.safetensors")
    published, back = (open_tensors(file, "upscaler") for file in (weights, tmp_path / "back.safetensors"))
    assert list(back) == [name for name in published if name.startswith(PREFIX)]
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor.read(), published[name].read())


@pytest.mark.long
def test_sampling(sampling, folder, models, upscalers, monkeypatch):
    """Logits and bits of the drawn scales, the first one's input, the sum of codes and the picture."""
    arrays, system, given_scales = sampling.arrays, models.of(sampling), sampling.info["given_scales"]
    config = dataclasses.replace(
        sampler_config(sampling, system.transformer, system.tokenizer),
        given_scales=given_scales,
        next_input=sampling.info["next_input_resize"],
    )
    network = next(file.arrays for file in folder.of_kind("nsarm_network"))
    maps, _ = run(upscalers.config, upscalers.params, channels_last(network["features"]))
    theirs = [channels_last(network[f"bits_{i}"]) > 0 for i in range(given_scales)]
    signed = [jnp.where(bits, 1.0, -1.0) for bits in bits_but_for_ties(maps, theirs)]
    symbols = given_bits(tuple(signed), system.tokenizer.patchify)
    batch = sampling.info["B"]
    symbols = tuple(jnp.broadcast_to(x, (batch, *x.shape[1:])) for x in symbols)
    where = tuple(jnp.ones((1, *x.shape[1:3]), bool) for x in symbols)
    inputs = sampler_inputs(sampling)._replace(given=Given(where, symbols))
    offsets = config.schedule.offsets
    first = offsets[given_scales]
    inputs_of_scales = []
    embed = scale_pass.next_input

    def noted(*arguments):
        inputs_of_scales.append(embed(*arguments))
        return inputs_of_scales[-1]

    monkeypatch.setattr(scale_pass, "next_input", noted)

    @jax.jit
    def draw(params, inputs, given_BLd):
        inputs_of_scales.clear()
        with logit_ties_taken_from(given_BLd, offsets) as differences:
            return sampler.draw(config, params, inputs), differences, inputs_of_scales[given_scales - 1]

    padded = np.pad(arrays["bits"].astype(bool), ((0, 0), (first, 0), (0, 0)))
    drawn, differences, first_input = draw(system.weights, inputs, padded)
    np.testing.assert_array_equal(join(drawn.bits[given_scales:]), arrays["bits"])
    logits = arrays["logits"][..., 1] - arrays["logits"][..., 0]
    ours = np.concatenate(differences, 1)[:, :: sampling.info["logit_stride"]]
    assert_close(ours, logits, WHOLE_MODEL, "differences of logits")
    if "input_scale_7" in arrays:
        rows = np.asarray(first_input)[:batch]
        assert_close(rows, arrays["input_scale_7"], SINGLE_LAYER, "first drawn scale's input")
    if "summed_codes" in arrays:
        codes = channels_last(arrays["summed_codes"])
        assert_close(drawn.running_sum_BHWd, codes, SINGLE_LAYER, "summed codes")
    if "image_u8_rgb" in arrays:
        monkeypatch.setattr(sampler, "draw", lambda config, drawn, *_: drawn)
        picture = sampler.make_sampler.__wrapped__(config)(drawn, system.tokenizer_params, inputs)
        assert np.abs(np.asarray(picture, int) - arrays["image_u8_rgb"]).max() <= 1


@pytest.mark.long
def test_training(training, models, upscalers):
    """Targets, errors and gradients of stage 1; inputs, labels, logits, losses and gradients of stage 2."""
    arrays, info, config, system = training.arrays, training.info, upscalers.config, models.of(training)
    schedule, patchify, given = training.schedule, system.tokenizer.patchify, training.info["given_scales"]
    true, low = (jnp.asarray(channels_last(arrays[f"{name}_features"])) for name in ("hq", "lq"))
    network: Any = UpscalerNetwork(config)

    def stage_1(params):
        targets = upscaler_losses.residuals(true, schedule.times(patchify), given)
        predicted = network.apply({"params": params}, low)
        return upscaler_losses.residual_loss(predicted, targets)[0], (targets, predicted)

    with jax.default_matmul_precision("highest"):
        (loss, (targets, predicted)), gradient = jax.jit(jax.value_and_grad(stage_1, has_aux=True))(
            upscalers.params
        )
    for i, (target, made) in enumerate(zip(targets, predicted, strict=True)):
        assert_close(to_tokens(target, "release"), arrays[f"o_residual_{i}"], SINGLE_LAYER, f"target {i}")
        assert_close(to_tokens(made, "release"), arrays[f"map_out_{i}"], SINGLE_LAYER, f"predicted {i}")
    assert_close(loss, info["stage1"]["loss_sum_of_means"], SINGLE_LAYER, "loss of stage 1")
    assert_gradient_norms(gradient, config, info["stage1"]["grad_norm_of_sum_of_means"])

    flipped = [name for name in arrays if name.startswith("flip_mask_")]
    flips = tuple(jnp.asarray(arrays[f"flip_mask_{k}"][:, 0] > 0) for k in range(len(flipped)))
    text, model = jax.tree.map(jnp.asarray, training.text()), cast(Any, Transformer(system.transformer))
    stride = info["position_stride_of_thinned"]
    theirs = [
        np.asarray(bits).astype(bool).reshape(len(true), *size, -1)
        for bits, size in zip(
            np.split(arrays["gt_bits"], schedule.offsets[1:-1], 1), schedule.sizes, strict=True
        )
    ]
    ties = [pyramid.to_tokenizer(jnp.asarray(bits), patchify) for bits in theirs]

    def stage_2(params):
        maps = network.apply({"params": params["network"]}, low)
        with residual_ties_taken_from(ties):
            inputs, bits = upscaler_losses.given_correction(true, maps, flips, schedule, patchify=patchify)
        logits = model.apply({"params": params["transformer"]}, inputs, *text, schedule)
        loss, _ = upscaler_losses.later_bit_loss(logits, bits, schedule, given)
        return loss, (inputs, bits, logits)

    params = {"network": upscalers.params, "transformer": system.weights}
    with jax.default_matmul_precision("highest"):
        (loss, (inputs, bits, logits)), gradient = jax.jit(jax.value_and_grad(stage_2, has_aux=True))(params)
    np.testing.assert_array_equal(bits, arrays["gt_bits"].astype(bool))
    assert_close(inputs[:, ::stride], arrays["x_BLC_wo_prefix"], SINGLE_LAYER, "inputs")
    flat = np.asarray(logits).reshape(*logits.shape[:2], -1)[:, ::stride]
    assert_close(flat, arrays["logits"], WHOLE_MODEL, "logits")
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, bits.astype(int)).mean(-1)
    assert_close(losses, arrays["loss_of_token"], WHOLE_MODEL, "losses")
    assert_close(loss, info["stage2"]["loss_mean_over_scales_7_and_later"], WHOLE_MODEL, "loss of stage 2")
    norms = info["stage2"]["grad_norm"]
    of_network = {name.removeprefix(PREFIX): norm for name, norm in norms.items() if name.startswith(PREFIX)}
    assert_gradient_norms(gradient["network"], config, of_network)
    of_transformer = {name: norm for name, norm in norms.items() if not name.startswith(PREFIX)}
    published = by_published_name(system.transformer, gradient["transformer"], of_transformer)
    assert published.keys() == of_transformer.keys()
    for name, norm in of_transformer.items():
        assert abs(np.linalg.norm(published[name]) - norm) <= 1e-3 * max(norm, 1e-3), name


def assert_gradient_norms(gradient, config, norms):
    """Compares the norm of each published tensor's gradient; None is no gradient."""
    flat = {trees.parameter_name(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(gradient)}
    ours = cast(list[Link], upscaler_links(config))
    links = {link.published.removeprefix(PREFIX): link for link in ours}
    assert links.keys() == norms.keys()
    # A gradient that is sums of many opposite terms is rounded in proportion to the others.
    largest = max(norm for norm in norms.values() if norm)
    for name, norm in norms.items():
        link = links[name]
        row = slice(None) if link.layer is None else link.layer
        ours = link.to_published(tuple(flat[path][row] for path in link.ours))
        assert abs(np.linalg.norm(ours) - (norm or 0.0)) <= 1e-3 * (norm or 0.0) + 1e-6 * largest, name
