"""The decoder in strips or picture by picture: the plain decoder's numbers, in less memory, on several devices too."""

import dataclasses
import os
import subprocess
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import paths
from helpers.paths import PROGRAMS

from infinity_jax.config import TokenizerConfig
from infinity_jax.tokenizer import decoder_memory, group_norm, strips
from infinity_jax.tokenizer.autoencoder import Decoder
from infinity_jax.tokenizer.convolution import Arithmetic
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.tools.planning import hlo_costs
from infinity_jax.training import flops

CONFIG = TokenizerConfig(bits=6, base_width=32, multipliers=(1, 2, 2), encoder_blocks=1, decoder_blocks=1)
PATCHED = TokenizerConfig(
    bits=6, base_width=64, multipliers=(1, 1), encoder_blocks=1, decoder_blocks=1, pixel_patch=2
)
UNEQUAL = dataclasses.replace(CONFIG, decoder_multipliers=(2, 1, 3))
# No room: strips of one or two rows, and all that can be is computed again.
NOTHING = decoder_memory.Memory(plain=0, held=0, strip=0)
EVERYTHING_HELD = decoder_memory.Memory(plain=0, held=2**30, strip=2**14)
ONE_PICTURE = decoder_memory.Memory(plain=2**16, held=0, strip=0)
SOME_HELD = decoder_memory.Memory(plain=0, held=2**18, strip=2**14)


def params_and_codes(config: TokenizerConfig, shape: tuple[int, int, int]):
    """Parameters that are all drawn, so that none of them is without effect, and codes."""
    key = jax.random.key(1)
    codes = jax.random.rademacher(key, (*shape, config.bits), jnp.float32)
    shapes = jax.eval_shape(lambda: nn.meta.unbox(Decoder(config).init(key, codes)["params"]))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    drawn = [rng.normal(leaf.ndim == 1, 0.2, leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(tree, drawn), codes


def plain(config: TokenizerConfig, params, codes) -> np.ndarray:
    return np.asarray(jax.jit(Decoder(config).apply)({"params": params}, codes))


def in_strips(
    config: TokenizerConfig, params, codes, memory: decoder_memory.Memory, numbers: Arithmetic | None = None
) -> np.ndarray:
    numbers = numbers or Arithmetic.of(config)
    return np.asarray(jax.jit(lambda p, x: strips.decode(config, p, x, numbers, memory))(params, codes))


@pytest.mark.parametrize(
    ("config", "shape", "memory"),
    [
        (CONFIG, (2, 3, 5), NOTHING),
        (CONFIG, (2, 4, 3), SOME_HELD),
        (CONFIG, (1, 1, 2), EVERYTHING_HELD),
        (CONFIG, (3, 4, 3), ONE_PICTURE),
        (PATCHED, (3, 7, 2), NOTHING),
        (UNEQUAL, (2, 3, 2), NOTHING),
        (PATCHED, (1, 1, 3), SOME_HELD),
    ],
)
def test_the_same_numbers_as_the_plain_decoder(config, shape, memory):
    params, codes = params_and_codes(config, shape)
    expected = plain(config, params, codes)
    ours = in_strips(config, params, codes, memory)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("memory", [NOTHING, SOME_HELD])
def test_products_of_neighbours_are_the_same_sums(memory):
    """Of few channels with all nine gathered, of many with those of a row."""
    wide = dataclasses.replace(CONFIG, base_width=96)
    params, codes = params_and_codes(wide, (2, 3, 4))
    expected = plain(wide, params, codes)
    ours = in_strips(wide, params, codes, memory, Arithmetic("float32", "float32", by_products=True))
    assert np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max()


def test_bfloat16_differs_by_its_rounding_only():
    config = TokenizerConfig(**{**vars(CONFIG), "compute_dtype": "bfloat16"})
    params, codes = params_and_codes(config, (1, 4, 6))
    exact = plain(CONFIG, params, codes)
    ours, theirs = in_strips(config, params, codes, SOME_HELD), plain(config, params, codes)
    errors = [np.abs(x - exact).mean() for x in (theirs, ours)]
    assert 0.5 < errors[1] / errors[0] < 1.5


def test_large_values_far_from_zero_keep_their_variance():
    """In one pass, sum of squares less square of the sum, float32 would lose it."""
    x = 1000 + jax.random.normal(jax.random.key(0), (2, 64, 16, 64))
    by_strip = jax.vmap(group_norm.moments)(jnp.stack(jnp.split(x, 8, 1)))
    moments = group_norm.joined(by_strip)
    grouped = np.asarray(x, np.float64).reshape(2, 64 * 16, 32, 2)
    np.testing.assert_allclose(moments.mean, grouped.mean((1, 3)), rtol=1e-6)
    np.testing.assert_allclose(moments.variance, grouped.var((1, 3)), rtol=1e-3)


def test_small_pictures_are_decoded_at_once_and_large_ones_in_strips(monkeypatch):
    config = TokenizerConfig()
    assert strips.largest_map(config, (16, 16), "float32") == 256 * 256 * 256 * 4
    for shape, memory, expected in (
        ((1, 16, 16, 32), decoder_memory.CPU, False),
        ((2, 16, 16, 32), decoder_memory.CPU, True),
        ((1, 64, 64, 32), decoder_memory.CPU, True),
        ((1, 64, 64, 32), decoder_memory.ACCELERATOR, False),
        ((2, 64, 64, 32), decoder_memory.ACCELERATOR, True),
    ):
        assert strips.needed(config, shape, Arithmetic.of(config), memory) == expected, (shape, memory)

    params, codes = params_and_codes(CONFIG, (2, 4, 3))
    expected = plain(CONFIG, params, codes)
    monkeypatch.setattr(decoder_memory, "CPU", SOME_HELD)
    ours = Tokenizer(CONFIG).apply({"params": {"decoder": params}}, codes, method="decode")
    assert np.abs(ours - np.clip(expected, -1, 1)).max() < 1e-5 * np.abs(expected).max()


def compiled(config: TokenizerConfig, side: int) -> Any:
    """`Tokenizer.decode` of one picture of side x side pixels, compiled from shapes."""
    tokenizer, n = Tokenizer(config), side // config.stride
    codes = jax.ShapeDtypeStruct((1, n, n, config.bits), jnp.float32)
    small = jnp.zeros((1, 1, 1, config.bits))
    params = jax.eval_shape(
        lambda: nn.meta.unbox(tokenizer.init(jax.random.key(0), small, method="decode")["params"])
    )
    decode = jax.jit(lambda p, x: tokenizer.apply({"params": p}, x, method="decode"))
    return decode.lower(params, codes).compile()


def test_the_finest_levels_of_a_megapixel_need_less_than_a_gigabyte():
    """The two finest levels of the published width, whose maps are what takes the memory: quick to compile."""
    config = TokenizerConfig(multipliers=(1, 2), decoder_blocks=2)
    assert compiled(config, 1024).memory_analysis().temp_size_in_bytes < 0.9e9


@pytest.mark.slow
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_a_megapixel_needs_less_than_a_gigabyte_and_no_more_work(compute_dtype):
    config = TokenizerConfig(compute_dtype=compute_dtype)
    program = compiled(config, 1024)
    assert program.memory_analysis().temp_size_in_bytes < 0.9e9
    counted = hlo_costs.costs(program.as_text() or "").flops
    assert counted < 1.05 * flops.decoder_flops(config, (64, 64))


def test_on_meshes_each_device_decodes_its_pictures(tmp_path):
    """The same pictures, and nothing travels but the weights, once: not again for each strip."""
    meshes = ["data=2,fsdp=2,tensor=2"]
    command = [sys.executable, PROGRAMS / "mesh_decode.py", tmp_path / "out.npz", *meshes]
    environment = os.environ | {"PYTHONPATH": paths.PYTHONPATH}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = np.load(tmp_path / "out.npz")
    for form in ("strips", "pictures"):
        for mesh in meshes:
            ours = results[f"{mesh}/{form}"]
            np.testing.assert_allclose(ours, results["plain"], atol=1e-5, err_msg=f"{mesh} {form}")
            assert results[f"{mesh}/{form}/collective_bytes"] <= results["weights"], (mesh, form)
