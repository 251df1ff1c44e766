"""VAR's quantiser and a tokenizer of codes: what is chosen, what is added, and that it learns."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from infinity_jax.config import TokenizerConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import decoder_memory, pyramid, resize, strips, vq
from infinity_jax.tokenizer.autoencoder import Decoder
from infinity_jax.tokenizer.convolution import Arithmetic
from infinity_jax.tokenizer.model import Tokenizer, initial_variables, quantizer_of
from infinity_jax.training import train_tokenizer
from infinity_jax.training.tokenizer_step import TokenizerLossConfig

SCHEDULE = ScaleSchedule(((1, 1), (2, 2), (4, 4)), (4, 4))
CONFIG = TokenizerConfig(
    bits=4, quantizer="vq", codes=10, phis=2, base_width=32, multipliers=(1, 1), encoder_blocks=1,
    decoder_blocks=1, attention=True, latent_kernel=3,
)  # fmt: skip


def quantizer(**changes) -> Any:
    draws = np.random.default_rng(0)
    codes, kernels, biases = (
        jnp.asarray(draws.normal(size=shape), jnp.float32) for shape in ((10, 4), (2, 3, 3, 4, 4), (2, 4))
    )
    one: Any = vq.VectorQuantizer(codes, kernels / 9, biases / 9, vq.phi_of_scale(3, 2))
    return one.replace(**changes)


def test_the_nearest_code_is_chosen_and_of_equal_ones_the_first():
    one = quantizer()
    z = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3, 4)), jnp.float32)
    distances = np.linalg.norm(np.asarray(z)[..., None, :] - np.asarray(one.codebook_VZ), axis=-1)
    np.testing.assert_array_equal(one.choose(z), distances.argmin(-1))
    twice = one.replace(codebook_VZ=jnp.concatenate([one.codebook_VZ, one.codebook_VZ]))
    np.testing.assert_array_equal(twice.choose(z), distances.argmin(-1))


def test_by_direction_the_size_of_a_residual_does_not_matter():
    one = quantizer(by_cosine=True)
    z = jnp.asarray(np.random.default_rng(1).normal(size=(7, 4)), jnp.float32)
    np.testing.assert_array_equal(one.choose(z), one.choose(100 * z))
    assert (one.choose(z) != quantizer().choose(z)).any()


def test_shares_of_one_code_are_the_code():
    one, numbers = quantizer(), jnp.array([[3, 0], [9, 9]])
    mixed = one.look_up(jax.nn.one_hot(numbers, 10))
    np.testing.assert_allclose(mixed, one.look_up(numbers), atol=1e-6)


def test_without_a_share_of_convolved_codes_they_are_only_resized():
    codes = jnp.asarray(np.random.default_rng(1).normal(size=(1, 2, 2, 4)), jnp.float32)
    added = quantizer(share=0.0).add(jnp.zeros((1, 4, 4, 4)), codes, 1)
    np.testing.assert_array_equal(added, resize.bicubic(codes, (4, 4)))


@pytest.mark.parametrize(("n_in", "n_out"), [(1, 5), (3, 7), (6, 6), (7, 3)])
def test_bicubic_resizing_keeps_constants_and_the_order_of_places(n_in, n_out):
    matrix = resize.bicubic_matrix(n_in, n_out)
    np.testing.assert_allclose(matrix.sum(1), 1.0, atol=1e-6)
    np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-6)


def test_the_pyramid_s_symbols_give_its_sum_again():
    features = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, 4)), jnp.float32)
    one = quantizer()
    out = vq.quantise(features, SCHEDULE, one)
    assert [x.shape for x in out.symbols] == [(2, 1, 1), (2, 2, 2), (2, 4, 4)]
    again = pyramid.sum_of_codes(out.symbols, (4, 4), one)
    np.testing.assert_allclose(again, out.running_sum_BHWd, atol=1e-6)


@pytest.fixture(scope="module")
def params():
    import flax.linen as nn

    return nn.meta.unbox(jax.jit(lambda: initial_variables(Tokenizer(CONFIG), 8, 0))())


@pytest.mark.long
def test_a_tokenizer_of_codes_learns_its_codes_and_convolutions(params):
    image = jnp.asarray(np.random.default_rng(2).uniform(-1, 1, (4, 8, 8, 3)), jnp.float32)
    optimiser = optax.adam(3e-3)

    def loss(params):
        made, out = cast(Any, Tokenizer(CONFIG).apply)({"params": params}, image, SCHEDULE)
        return jnp.abs(made - image).mean() + out.measured

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(grads, state)
        return optax.apply_updates(params, updates), state, value, grads

    state, values, first = optimiser.init(params), [], None
    for _ in range(30):
        params, state, value, grads = step(params, state)
        first = first or grads["codebook"]
        values.append(float(value))
    assert values[-1] < 0.8 * values[0]
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(first))


@pytest.mark.parametrize("by_cosine", [False, True])
def test_many_tokens_of_many_codes_are_chosen_some_at_a_time(monkeypatch, by_cosine):
    random = np.random.default_rng(3)
    z, codes = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((2, 3, 5, 4), (11, 4)))
    quantizer = vq.VectorQuantizer(codes, share=0.0, by_cosine=by_cosine, sphere=by_cosine)
    at_once = quantizer.choose(z)
    monkeypatch.setattr(vq, "_MOST_PRODUCTS", 4 * 11)
    np.testing.assert_array_equal(quantizer.choose(z), at_once)


def test_pictures_come_from_the_quantiser_of_the_parameters(params):
    image = jnp.asarray(np.random.default_rng(2).uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)
    module: Any = Tokenizer(CONFIG)
    made, out = jax.jit(lambda p: module.apply({"params": p}, image, SCHEDULE))(params)
    one = quantizer_of(CONFIG, params, SCHEDULE.n_scales)
    codes = pyramid.sum_of_codes(out.symbols, (4, 4), one)
    decoded = jax.jit(lambda p: module.apply({"params": p}, codes, method="decode"))(params)
    np.testing.assert_allclose(decoded, jnp.clip(made, -1, 1), atol=1e-5)


@pytest.mark.parametrize("by_products", [False, True])
def test_a_decoder_with_attention_decodes_large_maps_one_by_one(params, by_products):
    """Not in strips: each place attends to all others; also where products over neighbours want strips of all maps."""
    numbers = Arithmetic("float32", "float32", by_products)
    codes = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4, 4, 4)), jnp.float32)
    nothing = decoder_memory.Memory(plain=0, held=0, strip=0)
    decode = jax.jit(lambda p: strips.decode(CONFIG, p, codes, numbers, nothing))
    plain = jax.jit(lambda p: Decoder(CONFIG).apply({"params": p}, codes))(params["decoder"])
    np.testing.assert_allclose(decode(params["decoder"]), plain, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": 0}, "codes 0 with quantizer 'vq'; 'vq' needs 2 or more"),
        ({"quantizer": "bsq"}, "codes 10 with quantizer 'bsq'"),
        ({"latent_kernel": 2}, "latent_kernel 2 has no middle"),
    ],
)
def test_configs_that_cannot_be_are_refused(change, message):
    with pytest.raises(UserError) as refused:
        dataclasses.replace(CONFIG, **change)
    assert message in str(refused.value)


def test_scales_that_are_left_out_are_refused():
    with pytest.raises(UserError, match=r"set loss\.scales=short and loss\.short_scales=6"):
        train_tokenizer._check_codes(CONFIG, TokenizerLossConfig(), 6)
    train_tokenizer._check_codes(CONFIG, TokenizerLossConfig(scales="short", short_scales=6), 6)
