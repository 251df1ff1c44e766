"""Editing: what is kept and what is drawn, the two ends that are known exactly, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import systems
from helpers.paths import ROOT
from PIL import Image

from infinity_jax.cli.main import main
from infinity_jax.config import SampleConfig
from infinity_jax.data.through_bits import ThroughBits
from infinity_jax.errors import UserError
from infinity_jax.files import pictures as picture_files
from infinity_jax.sampling import editing, guidance, masks, sampler
from infinity_jax.sampling.config import SamplerConfig
from infinity_jax.sampling.editing import EditRequest
from infinity_jax.sampling.given import Given
from infinity_jax.sampling.inputs import gathered
from infinity_jax.sampling.masks import kept_by_scale
from infinity_jax.sampling.pipeline import InfinityPipeline
from infinity_jax.sampling.prompt_to_prompt import make_probabilities
from infinity_jax.sampling.request import SampleRequest
from infinity_jax.sampling.sampler import make_sampler
from infinity_jax.scales import make_schedule

SETTINGS = SampleConfig(cfg=2.0, decoder_dtype="float32")
SIDE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("system")
    systems.write_system(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(folder):
    return InfinityPipeline.from_pretrained(folder)


def picture(seed, width=SIDE, height=SIDE):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


def box(left, top, right, bottom, width=SIDE, height=SIDE):
    white = np.zeros((height, width), np.uint8)
    white[top:bottom, left:right] = 255
    return Image.fromarray(white)


def test_keeping_all_is_the_reconstruction(pipeline):
    given = [picture(0), picture(1)]
    for fixed in (False, True):
        request = EditRequest(given, ["a", "b"], strength=0.0, fixed=fixed)
        edited = np.stack([np.asarray(x) for x in pipeline.edit(request, SETTINGS)])
        through = ThroughBits(pipeline.model.tokenizer)(np.stack([np.asarray(x) for x in given]))
        np.testing.assert_array_equal(edited, through)


def test_keeping_nothing_is_a_drawn_picture(pipeline):
    drawn = pipeline(["a", "b"], seeds=[3, 4], settings=SETTINGS)
    edited = pipeline.edit(EditRequest([picture(0), picture(1)], ["a", "b"], seeds=[3, 4]), SETTINGS)
    for one, other in zip(drawn, edited, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_edit_does_not_depend_on_others_and_compiles_nothing_new(pipeline):
    masks = [box(4, 4, 12, 12), box(0, 0, 6, 16)]
    both = EditRequest([picture(0), picture(1)], ["a", "b"], masks, seeds=[5, 6])
    together = pipeline.edit(both, SETTINGS)
    program = make_sampler.cache_info().misses
    for i in range(2):
        alone = dataclasses.replace(
            both,
            pictures=[both.pictures[i]] * 2,
            prompts=[both.prompts[i]] * 2,
            masks=[masks[i]] * 2,
            seeds=[5 + i] * 2,
        )
        for one in pipeline.edit(alone, SETTINGS):
            np.testing.assert_array_equal(one, together[i])
    pipeline.edit(dataclasses.replace(both, strength=0.5, masks=None), SETTINGS)
    assert make_sampler.cache_info().misses == program


@pytest.mark.parametrize("fixed", [False, True])
def test_what_a_mask_keeps_is_the_picture_and_the_rest_another(pipeline, fixed):
    given, mask = picture(0, 40, 30), box(20, 0, 40, 30, 40, 30)
    request = EditRequest([given], ["a"], [mask], fixed=fixed)
    (edited,) = pipeline.edit(request, SETTINGS)
    assert edited.size == given.size
    before, after = np.asarray(given), np.asarray(edited)
    np.testing.assert_array_equal(before[:, :20], after[:, :20])
    assert (before[:, 24:] != after[:, 24:]).mean() > 0.9
    (drawn,) = pipeline.edit(dataclasses.replace(request, paste=False), SETTINGS)
    assert drawn.size == (SIDE, SIDE)


def test_the_scales_that_stay():
    schedule = make_schedule("32px")
    assert [x.all() for x in kept_by_scale(None, schedule, 0.5)] == [True, True, False, False]
    assert [x.any() for x in kept_by_scale(None, schedule, 1.0)] == [False] * 4
    assert all(x.all() for x in kept_by_scale(None, schedule, 0.0))
    white = np.zeros((32, 32), bool)
    white[:, 15:] = True  # a little of the second column of four, all of two
    one, two, three, four = kept_by_scale(white, schedule, 1.0)
    assert one.all()  # a scale of one token says what the whole picture is
    np.testing.assert_array_equal(four, np.tile([True, False, False, False], (4, 1)))
    np.testing.assert_array_equal(two, [[False, False]] * 2)
    np.testing.assert_array_equal(three, np.tile([True, False, False], (3, 1)))


def test_nothing_outside_a_mask_changes_and_the_edge_is_blended():
    black, white = Image.new("RGB", (64, 64), "black"), Image.new("RGB", (16, 16), "white")
    pasted = np.asarray(masks.paste(white, black, box(32, 0, 64, 64, 64, 64)))[32, :, 0].astype(int)
    assert not pasted[:32].any() and pasted[-16:].min() == 255
    assert (np.diff(pasted[31:]) >= 0).all() and 0 < pasted[33] < 255


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masks": [box(0, 0, 8, 8, 8, 8)]}, "mask 0 has 8x8 pixels and its picture 16x16"),
        ({"masks": [box(0, 0, 0, 0)]}, "mask 0 has nothing white"),
        ({"masks": [box(0, 0, 16, 16)]}, "mask 0 is all white"),
        ({"masks": []}, "got 1 pictures and 0 masks"),
        ({"prompts": ["a", "b"]}, "got 1 pictures and 2 prompts"),
        ({"strength": 1.5}, r"strength is 1\.5"),
        ({"pictures": [picture(0, 3, 3)]}, "picture 0 has 3x3 pixels; a token alone has 4x4"),
        ({"pictures": [Image.new("RGB", (20_000, 100))]}, "20000x100 pixels, far from every aspect ratio"),
        ({"pictures": [Image.new("RGB", (20_000, 6_000))]}, "more than 67108864; make it smaller"),
    ],
)
def test_what_cannot_be_edited_is_refused(pipeline, change, message):
    request = dataclasses.replace(EditRequest([picture(0)], ["a"]), **change)
    with pytest.raises(UserError, match=message):
        pipeline.edit(request, SETTINGS)


def test_the_command_writes_pictures_with_what_was_kept(folder, tmp_path, capsys):
    for i in range(2):
        picture(i).save(tmp_path / f"{i}.png")
    box(8, 0, 16, 16).save(tmp_path / "mask.png")
    words = [
        "edit",
        str(tmp_path / "0.png"),
        str(tmp_path / "1.png"),
        "--prompt",
        "a",
        "--checkpoint",
        str(folder),
    ]
    out = tmp_path / "out"
    assert main([*words, "--mask", str(tmp_path / "mask.png"), "--out", str(out)]) == 0
    note = picture_files.read_metadata(out / "1.png")
    assert note is not None and (note["seed"], note["strength"], note["pasted"]) == (1, 1.0, True)
    assert note["mask"] == str(tmp_path / "mask.png") and (out / "sheet.png").is_file()
    for more, message in (
        (["--mask", str(tmp_path / "none.png"), "--out", str(tmp_path / "b")], "none.png cannot be read"),
        (["--mask", str(ROOT / "README.md"), "--out", str(tmp_path / "b")], "no known picture format"),
        (["--out", str(tmp_path)], "would be written over"),
        (["--strength", "2", "--out", str(tmp_path / "b")], "is not one number from 0 to 1"),
    ):
        try:
            code = main([*words, *more])
        except SystemExit as end:
            code = end.code
        assert code == 2 and message in capsys.readouterr().err
        assert not (tmp_path / "b").exists()


def test_a_soft_edge_passes_from_what_is_kept_into_what_is_drawn():
    schedule = make_schedule("64px")
    white = np.zeros((64, 64), bool)
    white[:, 32:] = True
    hard, soft = (kept_by_scale(white, schedule, 1.0, feather) for feather in (0, 2))
    np.testing.assert_array_equal(hard[-1][0], [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(soft[-1][0], [1, 1, 2 / 3, 1 / 3, 0, 0, 0, 0])
    assert all(a.dtype == bool and b.dtype == np.float32 for a, b in zip(hard, soft, strict=True))
    assert [x.all() for x in soft] == [x.all() for x in hard]  # the same scales are kept whole


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_soft_ends_are_the_hard_ones(pipeline, share):
    """Codes of shares 0 and 1 are those that are drawn, and those that are given."""
    given, request = picture(0), EditRequest([picture(0)], ["a"], strength=1 - share, paste=False)
    (hard,) = pipeline.edit(request, SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            editing, "kept_by_scale", lambda _, s, *__: [np.full(size, share, np.float32) for size in s.sizes]
        )
        (soft,) = pipeline.edit(request, SETTINGS)
    np.testing.assert_array_equal(hard, soft)
    assert given.size == soft.size


def test_a_feathered_edit_keeps_what_is_far_from_the_mask(pipeline):
    mask = box(12, 0, 16, 16)
    request = EditRequest([picture(0)], ["a"], [mask], feather=1)
    (edited,) = pipeline.edit(request, SETTINGS)
    np.testing.assert_array_equal(np.asarray(edited)[:, :12], np.asarray(picture(0))[:, :12])


def test_the_same_prompt_changes_nothing_and_a_threshold_of_one_neither(pipeline):
    through = ThroughBits(pipeline.model.tokenizer)(np.asarray(picture(0))[None])[0]
    for source, target, threshold in (("a", "a", 0.0), ("a", "b", 1.0)):
        request = EditRequest([picture(0)], [target], source_prompts=[source], threshold=threshold)
        (edited,) = pipeline.edit(request, SETTINGS)
        np.testing.assert_array_equal(edited, through)


def test_lower_thresholds_draw_more_bits(pipeline):
    """And each picture is as when it is alone."""
    given, found = [picture(i) for i in range(3)], []
    through = ThroughBits(pipeline.model.tokenizer)(np.stack([np.asarray(x) for x in given])).astype(float)
    for threshold in (0.9, 0.05, 0.0):
        request = EditRequest(
            given, ["cat", "dog", "cow"], source_prompts=["a", "b", "c"], threshold=threshold
        )
        edited = pipeline.edit(request, SETTINGS)
        found.append(np.abs(np.stack([np.asarray(x) for x in edited]) - through).mean())
        alone = dataclasses.replace(
            request, pictures=given[1:2], prompts=["dog"], source_prompts=["b"], seeds=[1]
        )
        np.testing.assert_array_equal(pipeline.edit(alone, SETTINGS)[0], edited[1])
    assert found[0] < found[1] < found[2]


def test_greedy_bits_are_certain_by_their_own_prompt(pipeline):
    """Of a picture that was drawn without temperature every bit has the probability 1 of what it is, at all scales."""
    schedule = make_schedule("32px")
    model, settings = pipeline.model, SETTINGS.changed(tau=0.0)
    config = SamplerConfig.from_settings(model.config, model.tokenizer.config, schedule, settings)
    numbers = guidance.numbers([settings], schedule.n_scales, 2)
    given = gathered(pipeline.text_encoder, SampleRequest(["cat", "dog"], [1, 2]), numbers, 8)
    bits = jax.jit(sampler.draw, static_argnums=0)(config, pipeline._rounded_params, given).bits
    whole = Given(tuple(jnp.ones(x.shape[:3], bool) for x in bits), bits)
    found = make_probabilities(config)(pipeline._rounded_params, None, given._replace(given=whole))
    for drawn, probability in zip(bits, found, strict=True):
        np.testing.assert_array_equal(np.asarray(drawn, np.float32), probability)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threshold": 1.5, "source_prompts": ["a"]}, "threshold is 1.5"),
        ({"source_prompts": ["a", "b"]}, "2 source prompts"),
        ({"feather": 2}, "and a mask whose edge"),
        ({"feather": 99, "masks": [box(0, 0, 8, 8)]}, "feather is 99"),
        ({"feather": 1, "masks": [box(0, 0, 8, 8)], "source_prompts": ["a"]}, "leave one of them out"),
    ],
)
def test_what_does_not_go_together_is_refused(pipeline, changes, said):
    with pytest.raises(UserError, match=said):
        pipeline.edit(EditRequest([picture(0)], ["a"], **changes), SETTINGS)


def test_a_mask_of_a_few_pixels_draws_the_tokens_that_it_touches():
    white = np.zeros((64, 64), bool)
    white[9, 9] = white[50, 20] = True  # less than a hundredth of a token
    for feather in (0, 1):
        kept = kept_by_scale(white, make_schedule("64px"), 1.0, feather)[-1]
        assert np.argwhere(kept == 0).tolist() == [[1, 1], [6, 2]]
        assert kept.min() == 0 and kept.max() == 1


def test_two_equal_prompts_change_nothing_where_scales_are_unguided(pipeline):
    settings = SETTINGS.changed(unguided_scales=(2, 3))
    request = EditRequest([picture(0)], ["a"], source_prompts=["a"], threshold=0.0)
    through = ThroughBits(pipeline.model.tokenizer)(np.asarray(picture(0))[None])[0]
    np.testing.assert_array_equal(pipeline.edit(request, settings)[0], through)
