"""Learned positions (the baseline of the paper's Fig. 13): what they are, whom they serve, and the cached sampler."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.arbitrary_params import arbitrary_params
from helpers.drawing import sampler_inputs

from infinity_jax.checkpoints import trained
from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.config_files import from_dict
from infinity_jax.errors import UserError
from infinity_jax.runtime import sharding
from infinity_jax.runtime.mesh import MESH_AXES, axis_sizes, parse_mesh
from infinity_jax.sampling import bits, sampler
from infinity_jax.sampling.config import SamplerConfig
from infinity_jax.scales import ScaleSchedule, make_schedule
from infinity_jax.tokenizer.bsq import BSQ
from infinity_jax.tools.convert.transformer_names import transformer_links
from infinity_jax.training import flops
from infinity_jax.training.transformer_step import not_a_kernel
from infinity_jax.transformer.transformer import SCALE_ROWS, Transformer

SCHEDULE = make_schedule("32px")
LEARNED = TransformerConfig(
    layers=2, width=64, heads=4, bits=6, positions="learned:32px", text_channels=128, text_length=8,
    compute_dtype="float32",
)  # fmt: skip
ROPE2D = dataclasses.replace(LEARNED, positions="rope2d")
TOKENIZER = TokenizerConfig(bits=6, base_width=32, multipliers=(1, 1), encoder_blocks=1, decoder_blocks=1)
BATCH = 2
random = np.random.default_rng(1)
TEXT = jnp.asarray(random.standard_normal((BATCH, 5, 128)), jnp.float32)
MASK = jnp.arange(5) < jnp.array([[5], [3]])
INPUTS = jnp.asarray(random.standard_normal((BATCH, SCHEDULE.length - 1, 6)), jnp.float32)


@pytest.fixture(scope="module")
def params():
    return arbitrary_params(LEARNED, SCHEDULE)


@functools.partial(jax.jit, static_argnums=0, static_argnames="schedule")
def logits(config, params, inputs_BLd, schedule=SCHEDULE):
    return jnp.asarray(Transformer(config).apply({"params": params}, inputs_BLd, TEXT, MASK, schedule))


def test_every_place_has_a_vector_of_its_own_instead_of_the_scale_embedding():
    learned, rope2d = (trained.transformer_shapes(config) for config in (LEARNED, ROPE2D))
    assert learned.keys() - rope2d.keys() == {"position_embedding"}
    assert rope2d.keys() - learned.keys() == {"scale_embedding"}
    assert learned["position_embedding"].shape == (SCHEDULE.length, 64)
    more = flops.parameter_count(LEARNED) - flops.parameter_count(ROPE2D)
    assert more == (SCHEDULE.length - SCALE_ROWS) * 64
    assert not_a_kernel("position_embedding")
    assert from_dict(TransformerConfig, {"width": 64}, "transformer").positions == "rope2d"  # as in old files


def test_each_token_is_moved_by_its_own_vector(params):
    """Before the first block the token's vector is all that tells places apart, in both forms of the model."""
    rows = params["position_embedding"]

    @jax.jit
    def embedded(rows_LC):
        model, variables = Transformer(LEARNED), {"params": params | {"position_embedding": rows_LC}}
        condition = model.apply(variables, TEXT, MASK, method="text_condition")
        ends = zip(SCHEDULE.offsets, SCHEDULE.offsets[1:], strict=False)
        inputs = [INPUTS[:, start - 1 : end - 1] if start else None for start, end in ends]
        tokens: list[Any] = [
            model.apply(variables, condition, x, k, method="embed") for k, x in enumerate(inputs)
        ]
        return jnp.concatenate(tokens, 1)

    moved = embedded(rows) - embedded(jnp.zeros_like(rows))
    np.testing.assert_allclose(moved, jnp.broadcast_to(rows, moved.shape), atol=1e-5)


@pytest.mark.parametrize(("config", "equal"), [(LEARNED, True), (ROPE2D, False)])
def test_nothing_but_the_vectors_knows_places(params, config, equal):
    """Tokens of a scale that change places with their vectors change nothing else; with RoPE2d they would."""
    start, end = SCHEDULE.offsets[2:4]
    order = np.arange(SCHEDULE.length)
    order[start:end] = np.random.default_rng(3).permutation(order[start:end])
    moved = {**params}
    if config == LEARNED:
        moved["position_embedding"] = params["position_embedding"][order]
    else:
        params = moved = arbitrary_params(ROPE2D, SCHEDULE)
    inputs = INPUTS[:, order[1:] - 1]
    expected, found = logits(config, params, INPUTS)[:, order], logits(config, moved, inputs)
    difference = np.abs(expected - found).max()
    assert difference < 1e-4 if equal else difference > 1e-2


def test_a_scale_depends_on_itself_and_earlier_ones_only(params):
    def by_rows(rows_LC, inputs_BLd):
        return logits(LEARNED, params | {"position_embedding": rows_LC}, inputs_BLd)

    @jax.jit
    def gradients(rows_LC, inputs_BLd):
        out, pull_back = jax.vjp(by_rows, rows_LC, inputs_BLd)
        of_scale = jnp.array(SCHEDULE.scale_of_token) == jnp.arange(SCHEDULE.n_scales)[:, None]
        return jax.vmap(lambda of_L: pull_back(jnp.broadcast_to(of_L[:, None, None], out.shape) * 1.0))(
            of_scale
        )

    of_rows, of_inputs = gradients(params["position_embedding"], INPUTS)
    visible = np.arange(SCHEDULE.length) < np.array(SCHEDULE.offsets[1:])[:, None]
    np.testing.assert_array_equal(np.abs(of_rows).max(2) > 0, visible)
    np.testing.assert_array_equal(np.abs(of_inputs).max((1, 3)) > 0, visible[:, 1:])


def test_cached_logits_are_those_of_the_full_pass(params, monkeypatch):
    """Here of the first scales alone, which have the first vectors."""
    differences = []

    def seen(difference_BNd, *settings):
        differences.append(difference_BNd)
        return draw_bits(difference_BNd, *settings)

    draw_bits = bits.draw_bits
    monkeypatch.setattr(bits, "draw_bits", seen)
    part, ones = SCHEDULE.prefix(3), jnp.ones(3)
    given = sampler_inputs(TEXT, MASK, [7, 8], ones, ones)
    config = SamplerConfig(LEARNED, TOKENIZER, part, mixed="none")

    @jax.jit
    def draw(params):
        differences.clear()
        return sampler.draw(config, params, given), jnp.concatenate(differences, 1)

    drawn, found = draw(params)
    running_sum, inputs = jnp.zeros_like(drawn.running_sum_BHWd), []
    for of_scale, size in zip(drawn.bits[:-1], part.sizes[1:], strict=True):
        running_sum = BSQ.add(running_sum, BSQ.look_up(of_scale), 0)
        inputs.append(BSQ.next_input(running_sum, size).reshape(BATCH, -1, 6))
    inputs.append(INPUTS[:, part.length - 1 :])  # of the last scale, which the first cannot see
    full = logits(LEARNED, params, jnp.concatenate(inputs, 1))[:, : part.length]
    np.testing.assert_allclose(found, full[..., 1] - full[..., 0], atol=1e-4)


def test_another_schedule_is_refused(params):
    other = ScaleSchedule(((1, 1), (2, 2), (3, 3), (2, 8)), (2, 8))  # as many tokens
    words = (
        r"'learned:32px' are learned for the scales 1x1 2x2 3x3 4x4 alone.*schedule is 1x1 2x2 3x3 2x8; use"
    )
    with pytest.raises(UserError, match=words):
        logits(LEARNED, params, INPUTS, schedule=other)
    with pytest.raises(UserError, match=words):
        SamplerConfig(LEARNED, TOKENIZER, other)
    with pytest.raises(UserError, match="1x1 2x2 3x3 4x4 6x6 8x8; use"):
        LEARNED.check_schedule(make_schedule("64px"))


def test_names_are_checked_and_the_release_has_none_for_them():
    with pytest.raises(UserError, match="unknown positions 'learned'; use 'rope2d', 'learned:PRESET' or"):
        TransformerConfig(positions="learned")
    with pytest.raises(UserError, match="unknown scale preset '65px'"):
        TransformerConfig(positions="learned:65px")
    with pytest.raises(
        UserError, match=r"no name for learned positions.*'learned:32px'.*infinity-jax export"
    ):
        transformer_links(LEARNED, 0)


def test_on_meshes_the_vectors_are_split_like_the_stream():
    config = dataclasses.replace(LEARNED, positions="learned:1M", width=1024, heads=8)
    leaf = trained.transformer_variables(config)["position_embedding"]
    mesh = jax.sharding.AbstractMesh(axis_sizes(parse_mesh("fsdp=8"), config), MESH_AXES)
    spec = sharding.partition_spec(
        "position_embedding", leaf.names, leaf.value.shape, mesh, sharding.PRESETS["fsdp"]
    )
    assert leaf.value.shape == (make_schedule("1M").length, 1024) and tuple(spec) == (None, "fsdp")
