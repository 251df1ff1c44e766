"""Editing: what is kept and what is drawn, the two ends that are known exactly, and what is refused."""

import dataclasses

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
from infinity_jax.sampling import editing
from infinity_jax.sampling.editing import EditRequest, kept_by_scale
from infinity_jax.sampling.pipeline import InfinityPipeline
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
    pasted = np.asarray(editing.paste(white, black, box(32, 0, 64, 64, 64, 64)))[32, :, 0].astype(int)
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
