"""Pictures as they come: every scale is shown, the last is the picture itself, and nothing compiles twice."""

from typing import Any

import jax
import numpy as np
import pytest
from helpers import systems
from PIL import Image

from infinity_jax.config import SampleConfig
from infinity_jax.errors import UserError
from infinity_jax.sampling import coarse_to_fine, prompts_to_files
from infinity_jax.sampling.pipeline import InfinityPipeline
from infinity_jax.sampling.request import SampleRequest, SystemOptions

SETTINGS = SampleConfig(cfg=2.0, decoder_dtype="float32")
REQUEST = SampleRequest(["cat", "dog", "cow"], [3, 4, 5], batch=2)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("system")
    systems.write_system(folder)
    return InfinityPipeline.from_pretrained(folder)


@pytest.mark.parametrize("size", coarse_to_fine.SIZES)
def test_the_last_preview_is_the_picture(pipeline, size):
    wanted = pipeline.arrays(REQUEST, SETTINGS)
    sizes = pipeline._schedule("1:1", None).sizes
    seen = list(pipeline.stream_scales(REQUEST, SETTINGS, size))
    assert [(list(part), x.scale, x.is_final) for part, x in seen] == [
        (part, k, k + 1 == len(sizes)) for part in ([0, 1], [2]) for k in range(len(sizes))
    ]
    for part, preview in seen:
        if preview.is_final:
            np.testing.assert_array_equal(preview.images, wanted[part])
        else:
            side = 16 if size == "full" else sizes[preview.scale][0] * 4
            assert preview.images.shape == (len(part), side, side, 3)


def test_nothing_is_compiled_twice(pipeline):
    list(pipeline.stream_scales(REQUEST, SETTINGS))
    compiled = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", lambda *_: compiled.append(1))
        list(pipeline.stream_scales(SampleRequest(["a", "b"], [8, 9], batch=2), SETTINGS.changed(cfg=3.0)))
    programs = coarse_to_fine.programs_of.cache_info()
    assert programs.currsize == 1 and not compiled


def test_an_unknown_size_and_wrong_requests_are_refused_at_once(pipeline):
    with pytest.raises(UserError, match="preview_size 'small'"):
        pipeline.stream_scales(REQUEST, SETTINGS, "small")
    with pytest.raises(UserError, match="1 prompts and 2 seeds"):
        pipeline.stream_scales(SampleRequest(["a"], [1, 2]))


def test_the_command_writes_a_strip_and_an_animation_beside_the_same_pictures(
    pipeline, tmp_path, monkeypatch
):
    monkeypatch.setattr(InfinityPipeline, "from_pretrained", lambda *_: pipeline)
    request, system = SampleRequest(["red cat", "dog"], [1, 2]), SystemOptions("c")
    prompts_to_files.main(request, tmp_path / "plain", system)
    for _ in range(2):  # with --skip-existing the second time
        prompts_to_files.main(request, tmp_path / "shown", system, None, True, True)
    names = {x.name for x in (tmp_path / "shown").iterdir()}
    assert names == {
        *(
            f"{stem}{end}"
            for stem in ("0000-red-cat", "0001-dog")
            for end in (".png", ".scales.png", ".webp")
        ),
        "sheet.png",
    }
    scales = len(pipeline._schedule("1:1", None).sizes)
    for stem in ("0000-red-cat", "0001-dog"):
        plain, shown = ((tmp_path / x / f"{stem}.png").read_bytes() for x in ("plain", "shown"))
        assert plain == shown
        with Image.open(tmp_path / "shown" / f"{stem}.webp") as animation:
            frames: Any = animation
            assert frames.n_frames == scales
        strip = Image.open(tmp_path / "shown" / f"{stem}.scales.png")
        assert strip.size == (16 * scales + 4 * (scales - 1), 16)
        np.testing.assert_array_equal(
            np.asarray(strip)[:, -16:], np.asarray(Image.open(tmp_path / "shown" / f"{stem}.png"))
        )
