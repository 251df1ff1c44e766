"""Upscaling: what is given and what is drawn, tiles, colours, and what is refused."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import systems, upscalers
from PIL import Image

from infinity_jax.cli.main import main
from infinity_jax.config import SampleConfig
from infinity_jax.errors import UserError
from infinity_jax.files import pictures as picture_files
from infinity_jax.sampling import guidance as guidance_room
from infinity_jax.sampling import sampler, upscaling
from infinity_jax.sampling.config import SamplerConfig
from infinity_jax.sampling.given import Given
from infinity_jax.sampling.inputs import gathered
from infinity_jax.sampling.request import SampleRequest
from infinity_jax.sampling.upscaling import UpscalePipeline, UpscaleRequest
from infinity_jax.upscaler import colour

SETTINGS = SampleConfig(cfg=1.0, guidance="none", decoder_dtype="float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("upscaler")
    upscalers.write_upscaler(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(folder):
    return UpscalePipeline.from_pretrained(folder)


def picture(seed, width=8, height=8):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


def test_pictures_of_one_call_are_those_of_single_calls(pipeline):
    given = [picture(i) for i in range(3)]
    request = UpscaleRequest(given, ["a", "b", "c"], [4, 5, 6])
    together = pipeline(request, SETTINGS)
    assert [x.size for x in together] == [(16, 16)] * 3
    for i in range(3):
        alone = UpscaleRequest([given[i]], ["abc"[i]], [4 + i])
        np.testing.assert_array_equal(pipeline(alone, SETTINGS)[0], together[i])


def test_scales_that_are_given_whole_are_what_the_network_gives(pipeline):
    """With their heads and draws skipped as without: the bits, and the pictures that come of them."""
    small = np.stack([np.asarray(picture(i)) for i in range(2)])
    given = pipeline.given(small)
    request = SampleRequest(["a", "b"], [1, 2], given=given)
    drawn = pipeline.pipeline.arrays(request, SETTINGS)
    skipped = pipeline.pipeline.arrays(dataclasses.replace(request, given_scales=2), SETTINGS)
    np.testing.assert_array_equal(drawn, skipped)


def test_a_given_scale_runs_no_head(pipeline, monkeypatch):
    scales = []
    draw = sampler.hooks_of

    def noted(config):
        hooks = draw(config)

        def draw_bits(*arguments):
            scales.append(arguments[3].scale)
            return hooks.draw_bits(*arguments)

        return dataclasses.replace(hooks, draw_bits=draw_bits)

    monkeypatch.setattr(sampler, "hooks_of", noted)
    sampler.make_sampler.cache_clear()
    pipeline(UpscaleRequest([picture(0)], ["a"]), SETTINGS)
    sampler.make_sampler.cache_clear()
    schedule = pipeline.pipeline._schedule("1:1", None)
    assert scales == list(range(2, schedule.n_scales))


def test_how_the_next_input_is_made_is_the_upscalers(tmp_path, pipeline):
    config = upscalers.write_upscaler(tmp_path, next_input="area")
    assert config.next_input == "area"
    other = UpscalePipeline.from_pretrained(tmp_path)
    request = UpscaleRequest([picture(i) for i in range(4)], ["a"] * 4)
    made = [np.stack([np.asarray(x) for x in p(request, SETTINGS)]) for p in (pipeline, other)]
    assert (made[0] != made[1]).any()


def test_another_picture_or_prompt_compiles_nothing(pipeline):
    pipeline(UpscaleRequest([picture(0)], ["a"]), SETTINGS)
    with jax.log_compiles(True):
        before = sampler.make_sampler.cache_info().misses
        pipeline(UpscaleRequest([picture(1)], ["b"]), SETTINGS)
        assert sampler.make_sampler.cache_info().misses == before


@pytest.mark.parametrize(("width", "height"), [(8, 8), (20, 9), (5, 3), (8, 31)])
def test_tiles_cover_a_picture_and_join_to_it(width, height):
    image = np.asarray(picture(0, width, height))
    tiles = upscaling._Tiles(image, 8)
    cut = tiles.cut()
    assert cut.shape == (tiles.count, 8, 8, 3)
    enlarged = cut.repeat(2, 1).repeat(2, 2).astype(np.float32)
    np.testing.assert_array_equal(tiles.joined(list(enlarged), 2), image.repeat(2, 0).repeat(2, 1))


def test_other_sizes_are_drawn_in_tiles_or_refused_by_the_right_one(pipeline):
    wide = picture(0, 21, 12)
    (large,) = pipeline(UpscaleRequest([wide], ["a"], tile=True), SETTINGS)
    assert large.size == (42, 24)
    with pytest.raises(UserError, match=r"picture 0 has 21x12 .* makes 8x8 larger; .*--tile"):
        pipeline(UpscaleRequest([wide], ["a"]), SETTINGS)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (UpscaleRequest([picture(0)]), "trained on captions; give a prompt"),
        (UpscaleRequest([], []), "got 0 pictures"),
        (UpscaleRequest([picture(0)], ["a", "b"]), "1 pictures, 2 prompts"),
        (UpscaleRequest([picture(0)], ["a"], colour="vivid"), "colour 'vivid'"),
        (UpscaleRequest([Image.new("RGB", (9000, 9000))], ["a"], tile=True), "more than"),
    ],
)
def test_what_cannot_be_drawn_is_refused(pipeline, request_, said):
    with pytest.raises(UserError, match=said):
        pipeline(request_, SETTINGS)


def test_colours_are_the_small_pictures():
    small = np.full((8, 8, 3), (200, 40, 90), np.uint8)
    drawn = np.asarray(picture(0, 32, 32))
    for how in ("adain", "wavelet", "adain+wavelet"):
        made = colour.corrected(drawn, small, how)
        assert np.abs(made.mean((0, 1)) - (200, 40, 90)).max() < (
            np.abs(drawn.mean((0, 1)) - (200, 40, 90)).max()
        )
    np.testing.assert_array_equal(colour.corrected(drawn, small, "none"), drawn)


def test_the_command_writes_pictures_that_say_how_they_were_made(folder, tmp_path):
    picture(0).save(tmp_path / "a.png")
    picture(1, 10, 12).save(tmp_path / "b.png")
    files, out = [str(tmp_path / f"{x}.png") for x in "ab"], tmp_path / "out"
    command = ["upscale", *files, "--checkpoint", str(folder), "--prompt", "red", "--out", str(out)]
    assert main(command) == 2 and not list(out.glob("*.png"))
    assert main([*command, "--tile", "--colour", "none", "--seed", "3"]) == 0
    assert sorted(x.name for x in out.iterdir()) == ["a.png", "b.png", "sheet.png"]
    note = picture_files.read_metadata(out / "b.png")
    assert note and (note["prompt"], note["seed"], note["factor"], note["colour"]) == ("red", 4, 2, "none")
    with Image.open(out / "b.png") as written:
        assert written.size == (20, 24)


def test_an_upscaler_is_not_a_system_to_sample_with_and_the_other_way_round(folder, tmp_path, capsys):
    assert main(["sample", "red", "--checkpoint", str(folder), "--out", str(tmp_path / "x")]) == 2
    assert "draw with infinity-jax upscale" in capsys.readouterr().err
    systems.write_system(tmp_path / "system")
    picture(0).save(tmp_path / "a.png")
    command = ["upscale", str(tmp_path / "a.png"), "--prompt", "red", "--out", str(tmp_path / "y")]
    assert main([*command, "--checkpoint", str(tmp_path / "system")]) == 2
    assert "holds no upscaler" in capsys.readouterr().err
    assert main(command) == 2
    assert "--checkpoint is missing" in capsys.readouterr().err


@pytest.mark.parametrize("guidance", ["none", "logits"])
def test_given_scales_run_at_once_give_the_numbers_of_one_after_the_other(pipeline, guidance, monkeypatch):
    model, schedule = pipeline.pipeline.model, pipeline.pipeline._schedule("1:1", None)
    settings = SETTINGS.changed(guidance=guidance, cfg=2.0)
    config = SamplerConfig.from_settings(model.config, model.tokenizer.config, schedule, settings)
    config = dataclasses.replace(config, given_scales=3)
    small = np.stack([np.asarray(picture(i)) for i in range(2)])
    first = pipeline.given(small)
    numbers = guidance_room.numbers([settings], schedule.n_scales, 2)
    inputs = gathered(pipeline.pipeline.text_encoder, SampleRequest(["a", "b"], [1, 2]), numbers, 8)
    drawn = jax.jit(sampler.draw, static_argnums=0)
    third = drawn(
        dataclasses.replace(config, given_scales=0), pipeline.pipeline._rounded_params, inputs
    ).bits[2]
    assert first.symbols is not None
    where = (*first.where, jnp.ones(third.shape[:3], bool))
    inputs = inputs._replace(given=Given(where, (*first.symbols, third)))

    def states(config):
        def run(params, inputs):
            prepared, state = sampler.prepare(config, params, inputs), sampler.empty_state(config, 2)
            if sampler.can_prefill(config):
                return sampler.prefill(config, params, inputs, prepared, state)[1]
            for k in range(3):
                _, state = sampler.draw_scale(config, params, inputs, prepared, state, k)
            return state

        return jax.jit(run)(pipeline.pipeline._rounded_params, inputs)

    at_once = states(config)
    monkeypatch.setattr(sampler, "can_prefill", lambda config: False)
    one_by_one = states(config)
    for ours, theirs in zip(jax.tree.leaves(at_once), jax.tree.leaves(one_by_one), strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-5, atol=1e-5)


def test_options_that_change_the_first_scales_run_them_one_by_one(pipeline):
    model, schedule = pipeline.pipeline.model, pipeline.pipeline._schedule("1:1", None)

    def can(given, **changes):
        settings = SETTINGS.changed(**changes)
        config = SamplerConfig.from_settings(model.config, model.tokenizer.config, schedule, settings)
        return sampler.can_prefill(dataclasses.replace(config, given_scales=given))

    assert can(2) and can(3, guidance="logits", cfg=2.0)
    assert not can(1) and not can(0) and not can(2, guidance="features")
    assert not can(2, guidance="logits", unguided_scales=(1,)) and can(
        2, guidance="logits", unguided_scales=(3,)
    )


@pytest.mark.slow
def test_two_devices_draw_what_one_draws(folder, tmp_path):
    """In processes of their own, of which one has virtual devices."""
    for i in range(4):
        picture(i).save(tmp_path / f"{i}.png")
    command = [
        sys.executable,
        "-m",
        "infinity_jax.cli",
        "upscale",
        *(str(tmp_path / f"{i}.png") for i in range(4)),
    ]
    command += ["--checkpoint", str(folder), "--prompt", "red", "--decoder-dtype", "float32"]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    for name, more in (("one", []), ("two", ["--devices", "2"])):
        subprocess.run([*command, *more, "--out", str(tmp_path / name)], check=True, env=os.environ | flags)
    for i in range(4):
        one, two = (np.asarray(Image.open(tmp_path / name / f"{i}.png")) for name in ("one", "two"))
        np.testing.assert_array_equal(one, two)
