"""The transformer: pairs that must be equal, and who sees whom (test_golden.py: the release's numbers)."""

import dataclasses
import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arbitrary_params import arbitrary_params
from helpers.published_params import params_from

from infinity_jax.config import REMAT, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule, make_schedule
from infinity_jax.tools.convert.links import Buffer
from infinity_jax.tools.convert.transformer_names import transformer_links
from infinity_jax.training.transformer_losses import bit_loss
from infinity_jax.transformer import attention_layers
from infinity_jax.transformer.attention import attend, block_causal_attention, block_causal_mask
from infinity_jax.transformer.kernels import matmul as products
from infinity_jax.transformer.rope2d import rope_table, rotate, to_halves
from infinity_jax.transformer.transformer import Transformer, draw_path_factors, init_params, init_variables

SCHEDULE = ScaleSchedule(((1, 1), (2, 1), (3, 2), (4, 3)), (4, 3))
CONFIG = TransformerConfig(
    layers=3,
    width=64,
    heads=4,
    bits=6,
    text_channels=128,
    text_length=8,
    drop_path=0.3,
    compute_dtype="float32",
)


@pytest.fixture(scope="module")
def params():
    return arbitrary_params(CONFIG, SCHEDULE)


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(1)
    return {
        "inputs": jnp.asarray(random.standard_normal((3, SCHEDULE.length - 1, CONFIG.bits)), jnp.float32),
        "text": jnp.asarray(random.standard_normal((3, 5, 128)), jnp.float32),
        "mask": jnp.arange(5)[None] < jnp.array([[5], [2], [3]]),
        "bits": jnp.asarray(random.integers(0, 2, (3, SCHEDULE.length, CONFIG.bits)), jnp.int8),
    }


@functools.partial(jax.jit, static_argnames=("config",))
def logits(params, batch, config=CONFIG, **kwargs):
    arguments = batch["inputs"], batch["text"], batch["mask"], SCHEDULE
    return Transformer(config).apply({"params": params}, *arguments, **kwargs)


def test_rotary_positions_are_those_of_the_whole_preset():
    whole, part = make_schedule("1M", "3:2"), make_schedule("0.25M", "3:2")
    np.testing.assert_array_equal(rope_table(whole, 32)[0][: part.length], rope_table(part, 32)[0])


def gradients_of(params, batch, config):
    def loss_fn(params):
        factors = draw_path_factors(config, jax.random.key(2), len(batch["bits"]))
        out = logits(params, batch, config, path_factors_N2B=factors)
        return bit_loss(out, batch["bits"], SCHEDULE)[0]

    return jax.jit(jax.value_and_grad(loss_fn))(params)


@pytest.fixture(scope="module")
def float32_gradients(params, batch):
    return gradients_of(params, batch, CONFIG)


@pytest.mark.long
def test_scan_equals_loop_and_remat_equals_none(params, batch, float32_gradients):
    reference = float32_gradients
    changes = ({"scan_layers": False}, *({"remat": policy} for policy in REMAT if policy != "none"))
    for change in changes:
        other = gradients_of(params, batch, dataclasses.replace(CONFIG, **change))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), reference, other)


def test_bfloat16_is_close_to_float32(params, batch, float32_gradients):
    low = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    exact, rounded = logits(params, batch), logits(params, batch, low)
    assert rounded.dtype == jnp.float32
    assert np.linalg.norm(exact - rounded) / np.linalg.norm(exact) < 0.02
    (_, exact), (_, rounded) = float32_gradients, gradients_of(params, batch, low)
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
        assert np.linalg.norm(a - b) <= 0.06 * np.linalg.norm(a)


def test_bfloat16_between_products_is_close_to_float32(params, batch, float32_gradients, monkeypatch):
    """What TPUs and GPUs do: here forced on the CPU."""
    low = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    monkeypatch.setattr(products, "platform", lambda: "tpu")
    jax.clear_caches()
    seen = jax.make_jaxpr(
        lambda params: Transformer(low).apply(
            {"params": params}, batch["inputs"], batch["text"], batch["mask"], SCHEDULE
        )
    )(params)
    assert f"bf16[3,{SCHEDULE.length},{CONFIG.ffn_width}] = " in str(seen)
    exact, rounded = logits(params, batch), logits(params, batch, low)
    assert rounded.dtype == jnp.float32
    assert np.linalg.norm(exact - rounded) / np.linalg.norm(exact) < 0.02
    (_, exact), (_, rounded) = float32_gradients, gradients_of(params, batch, low)
    jax.clear_caches()
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(rounded), strict=True):
        assert np.linalg.norm(a - b) <= 0.06 * np.linalg.norm(a)


def test_pairs_of_channels_are_those_of_the_release():
    """Turned as halves, after the channels were reordered once, is turned as neighbours and reordered then."""
    x = np.random.default_rng(0).standard_normal((2, 4, SCHEDULE.length, 16)).astype(np.float32)
    cos_Ln, sin_Ln = rope_table(SCHEDULE, 16)
    pairs = x.reshape(*x.shape[:-1], 8, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    turned = np.stack([a * cos_Ln - b * sin_Ln, a * sin_Ln + b * cos_Ln], -1).reshape(x.shape)
    np.testing.assert_allclose(
        rotate(jnp.asarray(to_halves(x)), cos_Ln, sin_Ln), to_halves(turned), rtol=1e-6, atol=1e-6
    )


def test_a_seed_gives_the_model_that_it_gave_with_neighbours_as_pairs(monkeypatch):
    """Its function is the same, so a run from scratch is too: the order of channels is all that differs."""
    now = init_params(CONFIG, jax.random.key(3), SCHEDULE)["blocks"]["self_attention"]
    monkeypatch.setattr(attention_layers, "to_halves", lambda x: x)
    before = init_params(CONFIG, jax.random.key(3), SCHEDULE)["blocks"]["self_attention"]
    for name in ("query", "key"):
        assert not np.array_equal(now[name]["kernel"], before[name]["kernel"])
        np.testing.assert_array_equal(now[name]["kernel"], to_halves(before[name]["kernel"]))
    np.testing.assert_array_equal(now["value"]["kernel"], before["value"]["kernel"])


def test_a_scale_depends_on_itself_and_earlier_ones_only(params, batch):
    out, pull_back = jax.vjp(lambda inputs: logits(params, batch | {"inputs": inputs}), batch["inputs"])
    for k in range(SCHEDULE.n_scales):
        start, end = SCHEDULE.offsets[k : k + 2]
        (gradient,) = pull_back(jnp.zeros_like(out).at[:, start:end, :, 0].set(1.0))
        # The first scale has no input: the text is its input, so inputs begin at token 1.
        reached = np.abs(gradient).max((0, 2)) > 0
        np.testing.assert_array_equal(reached, np.arange(1, SCHEDULE.length) < end)


def test_padding_of_the_text_changes_nothing(params, batch):
    longer = {
        "text": jnp.concatenate([batch["text"], jnp.full((3, 3, 128), 7.0)], 1),
        "mask": jnp.concatenate([batch["mask"], jnp.zeros((3, 3), bool)], 1),
    }
    drop = jnp.array([True, False, True])
    shorter = logits(params, batch, drop_caption_B=drop)
    np.testing.assert_allclose(shorter, logits(params, batch | longer, drop_caption_B=drop), atol=2e-5)


def test_drop_path_rates_grow_with_depth():
    config = dataclasses.replace(CONFIG, drop_path=0.5, layers=2)
    # The first layer's rate is 0, so with one text and equal inputs only the second layer can differ.
    params = arbitrary_params(config, SCHEDULE)
    inputs = jnp.zeros((64, SCHEDULE.length - 1, config.bits))
    arguments = inputs, jnp.ones((64, 1, 128)), jnp.ones((64, 1), bool), SCHEDULE
    factors = draw_path_factors(config, jax.random.key(0), 64)
    forward = jax.jit(
        lambda: Transformer(config).apply({"params": params}, *arguments, path_factors_N2B=factors)
    )
    distinct = np.unique(np.round(np.asarray(forward()).reshape(64, -1)[:, 5], 4))
    assert len(distinct) == 4  # second layer: attention kept or not, feed-forward kept or not


def test_attention_by_scale_is_the_masked_form():
    schedule = make_schedule("128px")
    qkv = np.random.default_rng(0).standard_normal((3, 2, 2, schedule.length, 8))
    q, k, v = jnp.asarray(qkv, jnp.float32)
    mask = jnp.asarray(block_causal_mask(schedule))

    def plain(q, k, v):
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, k)
        return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(jnp.where(mask, scores, -jnp.inf)), v)

    def by_scale(q, k, v):
        return block_causal_attention(q, k, v, schedule, "float32")

    def masked(q, k, v):
        return attend(q, k, v, "float32", mask[None, None])

    def with_gradients(form):
        return jax.jit(
            lambda *qkv: (form(*qkv), jax.grad(lambda *x: jnp.sin(form(*x)).sum(), (0, 1, 2))(*qkv))
        )

    reference, gradients = with_gradients(plain)(q, k, v)
    for form in (by_scale, masked):
        out, ours = with_gradients(form)(q, k, v)
        np.testing.assert_allclose(out, reference, atol=1e-5)
        for a, b in zip(ours, gradients, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_every_parameter_has_logical_axes_and_blocks_are_stacked():
    variables = jax.eval_shape(lambda: init_variables(CONFIG, jax.random.key(0), SCHEDULE))
    boxed = jax.tree.leaves(variables["params"], is_leaf=lambda x: isinstance(x, nn.Partitioned))
    for leaf in boxed:
        assert isinstance(leaf, nn.Partitioned) and len(leaf.names) == leaf.value.ndim
        assert all(leaf.names) and leaf.value.dtype == jnp.float32
    for leaf in jax.tree.leaves(
        variables["params"]["blocks"], is_leaf=lambda x: isinstance(x, nn.Partitioned)
    ):
        assert leaf.names[0] == "layers" and leaf.value.shape[0] == CONFIG.layers


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ((12, 768, 8, 32), 125_185_696),
        ((16, 1152, 12, 32), 361_633_792),
        ((24, 1536, 16, 32), 940_944_832),
        ((32, 2080, 20, 32), 2_256_694_912),
        ((40, 2688, 24, 32), 4_716_421_888),
        ((32, 2048, 16, 32), 2_204_564_032),
        ((40, 3584, 28, 56), 8_375_791_824),
    ],
)
def test_parameter_counts_are_the_published_ones(size, count):
    layers, width, heads, bits = size
    config = TransformerConfig(layers=layers, width=width, heads=heads, bits=bits)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0), SCHEDULE))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == count


def test_initial_weights():
    config = TransformerConfig(layers=2, width=256, heads=4, bits=16, text_channels=384, text_length=16)
    # This kind of key compiles several times faster.
    params = init_params(config, jax.random.key(0, impl="rbg"), SCHEDULE)
    base = math.sqrt(1 / 256 / 3)
    blocks = params["blocks"]
    for kernel, factor in [
        (blocks["self_attention"]["query"]["kernel"], 1),
        (blocks["ffn"]["fc2"]["kernel"], 1 / math.sqrt(4)),
        (blocks["cross_attention"]["out"]["kernel"], 1 / math.sqrt(4)),
        (params["bit_head"]["logits"]["kernel"], 0.02),
        (params["bit_head"]["adaln"]["kernel"], 1e-3),
        # Unlike the blocks' tables and the head's map, the shared map is not scaled down.
        (params["shared_adaln"]["kernel"][:, :2], 1),
        (params["shared_adaln"]["kernel"][:, 2:], 1),
        (blocks["adaln_table"][:, :2], math.sqrt(3) * 5e-6),
        (blocks["adaln_table"][:, 2:], math.sqrt(3) * 1e-3),
    ]:
        # Four deviations of what so many numbers may differ by.
        error = 4 / math.sqrt(2 * kernel.size)
        assert float(jnp.std(kernel)) == pytest.approx(base * factor, rel=error)
    # A normal, not cut at two deviations of its own.
    assert float(jnp.abs(blocks["ffn"]["fc1"]["kernel"]).max()) > 3.5 * base
    assert float(jnp.std(params["text"]["empty_caption"])) == pytest.approx(0.955 / math.sqrt(384), rel=0.05)
    assert float(blocks["self_attention"]["log_scale"][0, 0]) == pytest.approx(math.log(4))


def test_errors_say_what_to_do(params, batch):
    with pytest.raises(UserError, match=r"\[B, 20, 6\]"):
        logits(params, batch | {"inputs": batch["inputs"][:, 1:]})
    long = {"text": jnp.ones((3, 9, 128)), "mask": jnp.ones((3, 9), bool)}
    with pytest.raises(UserError, match="text_length 8"):
        logits(params, batch | long, drop_caption_B=jnp.array([True, False, False]))
    many = ScaleSchedule(((1, 1),) * 16, (1, 1))
    with pytest.raises(UserError, match="16 scales"):
        Transformer(CONFIG).apply(
            {"params": params}, jnp.zeros((3, 15, 6)), batch["text"], batch["mask"], many
        )


@pytest.fixture(scope="module")
def published():
    """The published tensors of `CONFIG`, three layers in three chunks."""
    random = np.random.default_rng(2)
    tensors = {}
    for link in transformer_links(CONFIG, chunks=3):
        buffer = isinstance(link, Buffer)
        tensors[link.published] = link.values if buffer else random.standard_normal(link.published_shape)
    return tensors


def test_conversion_is_strict(published):
    links, name = transformer_links(CONFIG, chunks=3), "block_chunks.1.module.0.ffn.fc1.weight"
    with pytest.raises(UserError, match=rf"1 tensors are missing: {name}"):
        params_from({k: v for k, v in published.items() if k != name}, links)
    with pytest.raises(UserError, match="1 tensors are unknown: extra"):
        params_from(published | {"extra": np.zeros(1)}, links)
    with pytest.raises(
        UserError, match=r"another shape: .*fc1\.weight has \[64, 256\], expected \[256, 64\]"
    ):
        params_from(published | {name: published[name].T}, links)
    with pytest.raises(UserError, match="zero_k_bias holds"):
        params_from(published | {"block_chunks.0.module.0.sa.zero_k_bias": np.ones(64)}, links)


def test_conversion_knows_blocks_without_chunks(published):
    flat = {re.sub(r"block_chunks\.(\d)\.module\.0", r"blocks.\1", k): v for k, v in published.items()}
    chunked, unchunked = (
        params_from(tensors, transformer_links(CONFIG, chunks))
        for tensors, chunks in ((published, 3), (flat, 0))
    )
    jax.tree.map(np.testing.assert_array_equal, chunked, unchunked)
