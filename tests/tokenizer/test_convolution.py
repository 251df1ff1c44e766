"""The tokenizer's convolutions: every form has the sums of the plain one, and drawing stays near float32."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from infinity_jax.checkpoints import pretrained
from infinity_jax.config import TokenizerConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import convolution, model
from infinity_jax.tokenizer.convolution import Arithmetic, before_doubling, convolve, convolve_doubled
from infinity_jax.tokenizer.model import Tokenizer

FLOAT32 = Arithmetic("float32", "float32")
PRODUCTS = dataclasses.replace(FLOAT32, by_products=True)
SMALL = TokenizerConfig(bits=8, base_width=32, multipliers=(1, 2), encoder_blocks=1, decoder_blocks=1)


def plain(x, kernel, padding: Any = "SAME") -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def drawn(channels: int, features: int):
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], (2, 5, 7, channels)), jax.random.normal(
        keys[1], (3, 3, channels, features)
    )


def assert_equal_to_rounding(ours: Any, expected: Any) -> None:
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() < 3e-6 * np.abs(expected).max()


@pytest.mark.parametrize(("channels", "features"), [(48, 40), (160, 40), (48, 3)])
def test_by_products(channels, features, monkeypatch):
    x, kernel = drawn(channels, features)
    assert_equal_to_rounding(convolve(x, kernel, PRODUCTS, (1, 1), (1, 1)), plain(x, kernel))
    monkeypatch.setattr(convolution, "_GATHERED_BYTES", 0)  # row by row
    assert_equal_to_rounding(
        convolve(x, kernel, PRODUCTS, (0, 1), (1, 0)), plain(x, kernel, ((0, 1), (1, 0)))
    )


@pytest.mark.parametrize("numbers", [FLOAT32, PRODUCTS])
def test_after_a_doubling(numbers):
    """The result and both gradients are those of doubling first."""
    x, kernel = drawn(48, 40)
    cotangent = jax.random.normal(jax.random.key(2), (2, 10, 14, 40))

    def ours(x, kernel):
        return convolve_doubled(x, before_doubling(kernel), numbers, (1, 1))

    def doubling_first(x, kernel):
        return plain(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2), kernel)

    for function in (
        lambda f: f(x, kernel),
        *(lambda f, i=i: jax.grad(lambda *a: jnp.vdot(f(*a), cotangent), i)(x, kernel) for i in (0, 1)),
    ):
        assert_equal_to_rounding(function(ours), function(doubling_first))


@pytest.mark.parametrize(
    ("platform", "native", "expected"),
    [
        ("cpu", True, Arithmetic("bfloat16", "float32", by_products=True)),
        ("cpu", False, FLOAT32),
        ("gpu", False, Arithmetic("bfloat16", "float32")),
        ("tpu", False, Arithmetic("bfloat16", "float32")),
    ],
)
def test_pictures_are_drawn_in_bfloat16_where_that_is_quicker(platform, native, expected, monkeypatch):
    monkeypatch.setattr(convolution, "platform", lambda: platform)
    monkeypatch.setattr(convolution, "multiplies_bfloat16", lambda: native)
    assert convolution.drawing("bfloat16") == expected
    assert convolution.drawing("float32") == FLOAT32


@pytest.mark.parametrize("form", ["products", "convolutions"])
def test_drawing_in_bfloat16_stays_within_50_db_of_float32(form, monkeypatch):
    """In both forms, on the bundled tokenizer and random bits: a worse case than bits of pictures, which agree more."""
    tokenizer = pretrained.load_tokenizer("bundled")
    bits = jax.random.rademacher(jax.random.key(0), (2, 8, 8, tokenizer.config.bits), jnp.float32)
    codes = bits * tokenizer.config.bits**-0.5
    numbers = Arithmetic("bfloat16", "float32", by_products=form == "products")
    chosen = {"float32": FLOAT32, "bfloat16": numbers}
    monkeypatch.setattr(convolution, "drawing", chosen.__getitem__)
    decode = functools.partial(
        Tokenizer(tokenizer.config).apply, {"params": tokenizer.params}, method="decode"
    )
    exact, ours = (np.asarray(jax.jit(functools.partial(decode, operands=o))(codes)) for o in chosen)
    assert not np.array_equal(ours, exact)
    psnr = 10 * np.log10(4 / np.mean((ours - exact) ** 2, (1, 2, 3)))
    assert psnr.min() > 50, psnr


def convolutions(platform: str, function: Any, *arguments: Any) -> list[str]:
    """The lines of a program for a platform, which need not be here, that convolve."""
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    return [line for line in text.splitlines() if "stablehlo.convolution" in line]


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_bits_are_exact_on_devices_that_would_round_and_training_is_as_quick_as_they_are(platform):
    tokenizer, schedule = Tokenizer(SMALL), ScaleSchedule(((2, 2),), (2, 2))
    image, codes = jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 2, 2, 8))
    params = jax.eval_shape(lambda: model.initial_variables(tokenizer, 4, 0))
    one = {"params": params}

    def encode(p, x):
        return tokenizer.apply(p, x, method="encode")

    def decode(p, x):
        return tokenizer.apply(p, x, "float32", method="decode")

    def reconstruct(p, x):
        return model.reconstruct(tokenizer, p["params"], x, schedule)

    for function, x in ((encode, image), (decode, codes), (reconstruct, image)):
        lines = convolutions(platform, function, one, x)
        assert len(lines) > 5
        assert all(line.count("precision HIGHEST") == 2 for line in lines), lines
    for line in convolutions(platform, lambda p, x: tokenizer.apply(p, x, schedule), one, image):
        assert "HIGHEST" not in line
