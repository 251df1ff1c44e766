"""The sheet of what a model will see of a data set."""

import pytest
from helpers import systems
from PIL import Image

from infinity_jax.data import preview
from infinity_jax.errors import UserError


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    folder = tmp_path_factory.mktemp("system") / "tiny"
    systems.write_system(folder)
    return str(folder)


def pictures(folder, size):
    (folder / "cats").mkdir(parents=True)
    for i in range(5):
        Image.new("RGB", size, (40 * i, 0, 90)).save(folder / "cats" / f"{i}.png")
    return f"folder:{folder}"


SQUARE, WIDE = (30, 30), (40, 20)


@pytest.mark.parametrize(
    ("size", "fit", "told"), [(WIDE, "crop", True), (WIDE, "pad", False), (SQUARE, "crop", False)]
)
def test_a_preview_says_what_is_fed_and_how_well_it_is_given_back(
    tmp_path, monkeypatch, system, size, fit, told
):
    monkeypatch.setenv("INFINITY_DATA", str(tmp_path / "data"))
    words = preview.write_preview(pictures(tmp_path / "own", size), tmp_path / "sheet.png", fit, system)
    assert "over 5 pictures" in words and "train-tokenizer --config finetune:tokenizer" in words
    assert ("5 of 5 are not square, and what stands over is cut off" in words) == told
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 3 * preview.SIDE


def test_a_preview_that_cannot_be_written_is_refused_first(tmp_path):
    with pytest.raises(UserError, match=r"--preview .*its folder does not exist"):
        preview.write_preview("folder:nowhere", tmp_path / "no" / "sheet.png", "crop", "bundled")
