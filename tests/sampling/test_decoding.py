"""The picture behind the bits: decoded in the numbers that the settings name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arbitrary_params import arbitrary_params
from helpers.drawing import sampler_inputs

from infinity_jax.config import SampleConfig, TokenizerConfig, TransformerConfig
from infinity_jax.sampling import sampler
from infinity_jax.sampling.config import SamplerConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import convolution
from infinity_jax.tokenizer.model import Tokenizer

SCHEDULE = ScaleSchedule(((1, 1), (2, 2), (4, 4)), (4, 4))
MODEL = TransformerConfig(layers=1, width=64, heads=4, bits=6, text_channels=128, text_length=8)
TOKENIZER = TokenizerConfig(bits=6, base_width=32, multipliers=(1, 1), encoder_blocks=1, decoder_blocks=1)


def picture(monkeypatch, native: bool, decoder_dtype: str) -> tuple[np.ndarray, list[str]]:
    """Draws on a CPU that is said to multiply bfloat16 or not; also what the decoder was asked to multiply."""
    asked = []

    def drawing(operands: str) -> convolution.Arithmetic:
        asked.append(operands)
        return original(operands)

    original = convolution.drawing
    settings = SampleConfig(decoder_dtype=decoder_dtype)
    config = SamplerConfig.from_settings(MODEL, TOKENIZER, SCHEDULE, settings)
    codes = jnp.zeros((1, *SCHEDULE.last, 6))
    params = jax.jit(lambda: Tokenizer(TOKENIZER).init(jax.random.key(0), codes, method="decode"))()["params"]
    text = np.random.default_rng(0).standard_normal((2, 5, 128)).astype(np.float32)
    ones = np.ones(SCHEDULE.n_scales)
    inputs = sampler_inputs(text, np.ones((2, 5), bool), [1, 2], 3 * ones, ones)
    with monkeypatch.context() as patch:
        patch.setattr(convolution, "drawing", drawing)
        patch.setattr(convolution, "multiplies_bfloat16", lambda: native)
        sampler.make_sampler.cache_clear()
        drawn = np.asarray(sampler.make_sampler(config)(arbitrary_params(MODEL, SCHEDULE), params, inputs))
    sampler.make_sampler.cache_clear()
    return drawn, asked


@pytest.mark.long
def test_the_decoder_multiplies_what_the_settings_name(monkeypatch):
    exact, asked = picture(monkeypatch, native=True, decoder_dtype="float32")
    assert asked == ["float32"]
    rounded, asked = picture(monkeypatch, native=True, decoder_dtype="bfloat16")
    assert asked == ["bfloat16"]
    difference = rounded.astype(np.float32) - exact
    assert np.abs(difference).max() > 0 and 20 * np.log10(255 / np.sqrt(np.mean(difference**2))) > 45


def test_a_cpu_that_does_not_multiply_bfloat16_decodes_in_float32(monkeypatch):
    exact, _ = picture(monkeypatch, native=False, decoder_dtype="float32")
    np.testing.assert_array_equal(picture(monkeypatch, native=False, decoder_dtype="bfloat16")[0], exact)
