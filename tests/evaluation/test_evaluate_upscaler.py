"""`infinity-jax evaluate-upscaler` on a tiny random upscaler."""

import dataclasses
import functools
import json

import pytest
from helpers import evaluations, upscalers
from PIL import Image

from infinity_jax.data.degradation.process import DegradationConfig
from infinity_jax.evaluation import evaluate_upscaler

# How the run that made the upscaler spoiled its pictures, as JSON keeps it.
NOTED = json.loads(json.dumps(dataclasses.asdict(DegradationConfig(rounds=1, gaussian_1=1.0))))


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory):
    """A function that evaluates on a folder of so many pictures: (exit code, numbers or None)."""
    root = tmp_path_factory.mktemp("evaluate_upscaler")
    upscalers.write_upscaler(root / "upscaler", {"degradation": NOTED})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFINITY_DATA", str(root / "data"))

        yield functools.partial(evaluations.evaluate, "evaluate-upscaler", root / "upscaler", root)


@pytest.mark.long
def test_all_rows_are_measured_and_drawn(evaluate, tmp_path):
    weights = ",".join(map(str, evaluations.write_lpips(tmp_path)))
    code, numbers = evaluate(160, "--clean", "--lpips-weights", weights, "--sheet", tmp_path / "sheet.png")
    assert code == 0 and numbers["clean"] and numbers["pictures"] >= 4
    for row in ("bicubic", "tokenizer", "upscaled"):
        for name in ("psnr", "ssim", "lpips", "consistency"):
            low, high = numbers[row][f"{name}_interval"]
            assert low <= numbers[row][name] <= high, (row, name)
        assert numbers[row]["kid_interval"][0] <= numbers[row]["kid_interval"][1]
    # What nothing has trained cannot be better than a bicubic picture.
    assert numbers["upscaled"]["psnr"] < numbers["bicubic"]["psnr"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 100


@pytest.mark.long
def test_pictures_are_spoiled_as_in_the_run_that_made_the_upscaler(evaluate, monkeypatch):
    seen, degrade = [], evaluate_upscaler.degrade

    def noted(image, factor, config, *place):
        seen.append(config)
        return degrade(image, factor, config, *place)

    monkeypatch.setattr(evaluate_upscaler, "degrade", noted)
    code, numbers = evaluate(160, "--pictures", "4")
    assert code == 0 and not numbers["clean"] and numbers["pictures"] == 4
    assert set(seen) == {DegradationConfig(rounds=1, gaussian_1=1.0)}


def test_too_few_pictures_are_refused(evaluate, capsys):
    code, numbers = evaluate(6)
    assert code == 2 and numbers is None
    assert "use a larger data set" in capsys.readouterr().err
