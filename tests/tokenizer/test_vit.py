"""The ViT encoder and decoder; their numbers are compared with the release's in test_golden_bsq_vit."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax.checkpoints.trained import TrainedTokenizer
from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.data.resolutions import PictureConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import make_schedule
from infinity_jax.tokenizer import decoder_memory, halves, strips
from infinity_jax.tokenizer.convolution import Arithmetic
from infinity_jax.tokenizer.model import Tokenizer, initial_variables, reconstruct
from infinity_jax.training import flops, train_tokenizer
from infinity_jax.training.config import TrainConfig
from infinity_jax.training.tokenizer_step import TokenizerLossConfig

CONFIG = TokenizerConfig(
    bits=6, base_width=16, multipliers=(1,), decoder_multipliers=(2,), encoder_blocks=2, decoder_blocks=2,
    pixel_patch=4, architecture="vit", side=16, heads=2, decoder_heads=4, hidden=24, scaled_gradient=True,
)  # fmt: skip
SCHEDULE = make_schedule("4")


@pytest.fixture(scope="module")
def params():
    fresh = nn.meta.unbox(jax.jit(lambda: initial_variables(Tokenizer(CONFIG), 16, 0))())
    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + jnp.asarray(0.1 * random.normal(size=x.shape), jnp.float32), fresh)


@pytest.fixture(scope="module")
def image():
    return jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (3, 16, 16, 3)), jnp.float32)


def test_pictures_and_their_features_have_the_sizes_of_any_tokenizer(params, image):
    module: Any = Tokenizer(CONFIG)
    features = module.apply({"params": params}, image, method="encode")
    assert features.shape == (3, 4, 4, 6) and features.dtype == jnp.float32
    assert reconstruct(module, params, image, SCHEDULE).shape == image.shape
    several = make_schedule("1-2-4")
    assert reconstruct(module, params, image, several).shape == image.shape


def test_pictures_of_another_size_are_refused_with_the_remedy(params):
    module: Any = Tokenizer(CONFIG)
    with pytest.raises(
        UserError, match=r"positions for pictures of 16x16 pixels, and these are 16x32; use that"
    ):
        module.apply({"params": params}, jnp.zeros((1, 16, 32, 3)), method="encode")
    with pytest.raises(UserError, match="these are 8x8; use that size"):
        module.apply({"params": params}, jnp.zeros((1, 2, 2, 6)), method="decode")


def test_scales_of_another_size_are_refused_before_a_picture_is_read(params):
    """By what loads a tokenizer, by its training, and by a transformer, which begins with one token."""
    assert TrainedTokenizer(CONFIG, params, "1-2-4", {}).side == 16
    with pytest.raises(UserError, match=r"'64px' are of pictures of 32x32 pixels.*16x16 alone; use '4', or"):
        TrainedTokenizer(CONFIG, params, "64px", {})
    with pytest.raises(
        UserError, match=r"pictures of 8 pixels.*model\.side 16 alone; use scales that end with 4"
    ):
        train_tokenizer.resolutions_of(
            PictureConfig("emoji_captions", "2"),
            CONFIG,
            TokenizerLossConfig(scales="short"),
            TrainConfig(1, 1),
        )
    transformer = TransformerConfig(layers=1, width=64, heads=2, bits=6, text_channels=128, text_length=8)
    with pytest.raises(
        UserError, match="the first scale of 4x4 has 4x4 tokens, and a transformer begins with one"
    ):
        transformer.check_schedule(SCHEDULE)


def test_features_of_encoders_with_other_heads_have_other_names(params):
    names = {
        TrainedTokenizer(dataclasses.replace(CONFIG, **change), params, "4", {}).fingerprint
        for change in ({}, {"heads": 4}, {"laplace": True}, {"decoder_heads": 2})
    }
    assert len(names) == 3  # the decoder has no part in features


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"multipliers": (1, 2), "decoder_multipliers": ()}, "a ViT has one width"),
        ({"side": 0}, "side 0 is not a whole number of patches"),
        ({"side": 18}, "side 18 is not a whole number of patches of pixel_patch 4"),
        ({"heads": 3}, "width 16 of a ViT is not divisible by its 3 heads"),
        ({"attention": True}, "are of convolutions"),
    ],
)
def test_what_is_no_vit_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **change)
    with pytest.raises(UserError, match="laplace True and side 0 are of architecture 'vit' alone"):
        TokenizerConfig(laplace=True)


def test_many_pictures_are_decoded_some_at_a_time(params):
    codes = jnp.asarray(np.random.default_rng(2).normal(size=(6, 4, 4, 6)), jnp.float32)
    numbers = Arithmetic.of(CONFIG)
    two = 2 * strips.largest_map(CONFIG, (4, 4), "float32")
    assert strips.needed(CONFIG, codes.shape, numbers, decoder_memory.Memory(two, 0, 0))
    decode = jax.jit(lambda p: strips.decode(CONFIG, p, codes, numbers, decoder_memory.Memory(two, 0, 0)))
    decoder: Any = halves.networks_of(CONFIG)[1](CONFIG)
    plain = jax.jit(lambda p: decoder.apply({"params": p}, codes))(params["decoder"])
    np.testing.assert_allclose(decode(params["decoder"]), plain, atol=1e-5)


def test_lower_precision_and_remat_stay_near(params, image):
    def loss(config):
        def of(params):
            decoded, _ = Tokenizer(config).apply({"params": params}, image, SCHEDULE)
            return jnp.square(jnp.asarray(decoded) - image).mean()

        return jax.jit(jax.value_and_grad(of))(params)

    value, gradient = loss(CONFIG)
    again, of_remat = loss(dataclasses.replace(CONFIG, remat="block"))
    assert float(again) == pytest.approx(float(value), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), of_remat, gradient)
    rounded, _ = loss(dataclasses.replace(CONFIG, compute_dtype="bfloat16"))
    assert float(rounded) == pytest.approx(float(value), rel=0.05) and float(rounded) != float(value)


def test_pixels_of_a_distribution(params, image):
    """Its loss is least where the middle is the picture's, and smaller spreads pay off there."""
    config = dataclasses.replace(CONFIG, laplace=True)
    assert halves.seen(config, image).min() >= 0.1 and halves.seen(config, image).max() <= 0.9
    inner = halves.seen(config, image)
    middle = jnp.log(inner / (1 - inner))

    def decoded(shift, log_spread):
        return jnp.concatenate([middle + shift, jnp.full_like(middle, log_spread)], -1)

    np.testing.assert_allclose(halves.shown(config, decoded(0.0, 0.0)), image, atol=1e-5)
    at, beside = (halves.pixel_loss(config, decoded(shift, 0.0), image) for shift in (0.0, 0.3))
    assert float(beside - at) == pytest.approx(0.3, rel=1e-4)
    assert float(at - halves.pixel_loss(config, decoded(0.0, -1.0), image)) == pytest.approx(1.0, rel=1e-4)


def test_flop_are_counted_by_hand():
    tokens = 16
    block = lambda width: 2 * tokens * 12 * width**2 + 4 * tokens**2 * width  # noqa: E731
    encoder = 2 * tokens * (48 * 16 + 16 * 6) + 2 * block(16)
    decoder = 2 * tokens * (6 * 32 + 32 * 24 + 24 * 48) + 2 * block(32)
    assert flops.encoder_flops(CONFIG, (4, 4)) == encoder
    assert flops.decoder_flops(CONFIG, (4, 4)) == decoder


def test_weights_begin_as_the_release_draws_them():
    """A normal of 0.02; around the quantiser and the last biases uniform within 1/sqrt(inputs)."""
    wide = dataclasses.replace(CONFIG, base_width=64, hidden=256)
    fresh = nn.meta.unbox(jax.jit(lambda: initial_variables(Tokenizer(wide), 16, 0))())
    encoder, decoder = fresh["encoder"], fresh["decoder"]
    for kernel in (encoder["patches"], encoder["body"]["blocks"]["fc1"], decoder["fc1"], decoder["fc2"]):
        assert np.std(kernel["kernel"]) == pytest.approx(0.02, rel=0.1)
    assert not np.any(encoder["body"]["blocks"]["joined"]["bias"])
    for layer, inputs in ((encoder["out"], 64), (decoder["in"], 6)):
        for part in layer.values():
            assert 0.5 * inputs**-0.5 < np.abs(part).max() <= inputs**-0.5
    assert 0.5 * 256**-0.5 < np.abs(decoder["fc2"]["bias"]).max() <= 256**-0.5
