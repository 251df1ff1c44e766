"""Many pictures at a time: batches that follow each other, their files, and how often something is compiled."""

import contextlib
import errno
import itertools
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.systems import write_system
from PIL import Image

import infinity_jax
from infinity_jax.errors import UserError
from infinity_jax.files import pictures as picture_files
from infinity_jax.sampling import inputs, pipeline, prompts_to_files
from infinity_jax.sampling.request import SampleRequest, SystemOptions

PROMPTS = [f"{word} {thing}" for word in ("red", "blue") for thing in ("heart", "ball", "cat")]
TEXT_LENGTH = 64


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    folder = tmp_path_factory.mktemp("system")
    write_system(folder, TEXT_LENGTH)
    return infinity_jax.InfinityPipeline.from_pretrained(folder)


@contextlib.contextmanager
def compilations():
    """Counts the programs that are compiled, or loaded from the cache of compiled programs."""
    seen: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.long
def test_batches_are_the_same_pictures(system):
    whole = system.arrays(SampleRequest(PROMPTS, range(6), batch=16))
    parts = list(system.stream(SampleRequest(PROMPTS, range(6), batch=4)))
    assert [numbers for numbers, _ in parts] == [range(0, 4), range(4, 6)]
    np.testing.assert_array_equal(np.concatenate([images for _, images in parts]), whole)
    alone = [images for _, images in system.stream(SampleRequest(PROMPTS[3:4], [3], batch=4))]
    np.testing.assert_array_equal(alone[0][0], whole[3])
    ((numbers, some),) = system.stream(SampleRequest(PROMPTS, range(6), batch=4), only=[5, 1])
    assert list(numbers) == [5, 1]
    np.testing.assert_array_equal(some, whole[[5, 1]])


def test_mistakes_are_found_before_anything_is_drawn(system):
    with pytest.raises(UserError, match="prompt 2 of 2 is empty"):
        system.stream(SampleRequest(["a", " "], [0, 1]))
    with pytest.raises(UserError, match="batch 0 must be at least 1"):
        system.stream(SampleRequest(["a"], [0], batch=0))


class FakePictures:
    """Pictures that say when they are started and fetched."""

    def __init__(self, events: list[str], rows: int):
        self.events, self.rows = events, rows
        self.number = sum(event.startswith("start") for event in events)
        events.append(f"start {self.number}")

    def copy_to_host_async(self):
        pass

    def __array__(self, dtype=None, copy=None):
        self.events.append(f"fetch {self.number}")
        return np.zeros((self.rows, 2, 2, 3), np.uint8)


def test_a_batch_is_started_before_the_last_one_is_fetched(system, monkeypatch):
    events: list[str] = []
    monkeypatch.setattr(
        pipeline,
        "make_sampler",
        lambda config, layout: lambda p, t, inputs: FakePictures(events, len(inputs.seeds_B)),
    )
    for numbers, images in system.stream(SampleRequest(PROMPTS, range(6), batch=2)):
        assert len(images) == len(numbers) == 2
        events.append(f"hand out {numbers[0] // 2}")
    assert events == [
        "start 0", "start 1", "fetch 0", "hand out 0", "start 2", "fetch 1", "hand out 1", "fetch 2", "hand out 2",
    ]  # fmt: skip


def test_nothing_is_compiled_after_a_warm_up(system):
    system.warm_up(SampleRequest(["a red heart"], [0]))
    with compilations() as seen:
        system(["a blue ball", "cat"], seeds=[3, 4], cfg=(1.0, 2.0, 3.0, 4.0), tau=0.5, top_p=0.9)
        system(PROMPTS * 3, guidance="pyramid", cfg=3.0)
        list(system.stream(SampleRequest(PROMPTS, range(6)), system.settings.changed(tau=0.7)))
    assert not seen
    with compilations() as seen:
        jax.jit(lambda x: x + 1)(0)
    assert seen, "these are seen"


def test_a_warm_up_is_for_the_longest_text(system, monkeypatch):
    shapes = []

    def draw(params, tokenizer_params, inputs):
        shapes.append(inputs.text_BTC.shape[:2])
        return FakePictures([], len(inputs.seeds_B))

    monkeypatch.setattr(pipeline, "make_sampler", lambda config, layout: draw)
    system.warm_up(SampleRequest(["a", "a " * 50, "b"], range(3)))
    assert shapes == [(1, 64), (4, 64), (16, 64)]
    shapes.clear()
    system.warm_up(SampleRequest(["a", "b"], range(2), negative_prompts=["c", "a " * 50]), pictures=[1])
    assert shapes == [(1, 64)]


def test_texts_of_any_length_have_few_shapes(system, monkeypatch):
    shapes = []

    def draw(params, tokenizer_params, inputs):
        text = inputs.text_BTC, inputs.mask_BT, inputs.negative_BTC, inputs.negative_mask_BT
        shapes.append([x.shape[:2] for x in text if x is not None])
        return FakePictures([], len(inputs.seeds_B))

    monkeypatch.setattr(pipeline, "make_sampler", lambda config, layout: draw)
    for words in (1, 5, 20, 30, 31, 50, 100):  # and two tokens more
        list(system.stream(SampleRequest(["a " * words, *["b"] * 3], range(4), batch=2)))
    assert shapes == [[(2, 32)] * 2] * 8 + [[(2, 64)] * 2] * 6, "one for all batches of a call"
    shapes.clear()
    for words in (1, 31):
        list(system.stream(SampleRequest(["a"], [0], negative_prompts=["a " * words], batch=2)))
    assert shapes == [[(2, 32)] * 4, [(2, 64)] * 4]
    assert system.text_encoder._apply._cache_size() <= 4, "8, 16, 32 and 64 tokens"


def test_longer_padding_draws_the_same(system, monkeypatch):
    def draw():
        return [images for _, images in system.stream(SampleRequest([PROMPTS[0]] * 4, range(4), batch=4))]

    with_32 = draw()
    monkeypatch.setattr(inputs, "padded_lengths", lambda encoder, texts: [64])
    np.testing.assert_array_equal(draw(), with_32)


@pytest.fixture
def run(system, monkeypatch):
    """`infinity-jax sample` of the system that is loaded already."""
    monkeypatch.setattr(infinity_jax.InfinityPipeline, "from_pretrained", lambda *_: system)

    def sample(out, prompts=PROMPTS, skip_existing=False, negative_prompt="", batch=4, **settings):
        negative = [negative_prompt] * len(prompts) if negative_prompt else None
        request = SampleRequest(prompts, range(5, 5 + len(prompts)), negative, batch=batch)
        prompts_to_files.main(request, out, SystemOptions("c"), settings, skip_existing)

    return sample


def pictures(out):
    return sorted(path for path in out.iterdir() if path.name != "sheet.png")


def test_files(system, run, tmp_path):
    run(tmp_path / "new" / "out", negative_prompt="dog", cfg=(3.0,))
    files = pictures(tmp_path / "new" / "out")
    assert [file.name for file in files][:2] == ["0000-red-heart.png", "0001-red-ball.png"]
    steered = system.settings.changed(cfg=3.0)
    expected = [
        images
        for _, images in system.stream(SampleRequest(PROMPTS, range(5, 11), ["dog"] * 6, batch=4), steered)
    ]
    np.testing.assert_array_equal([np.asarray(Image.open(file)) for file in files], np.concatenate(expected))
    assert picture_files.read_metadata(files[1]) == {
        "prompt": "red ball", "seed": 6, "negative_prompt": "dog", "cfg": 3.0, "tau": 1.0, "top_p": 1.0,
        "guidance": "logits", "unguided_scales": [], "reuse_guidance": False, "pruning": "none",
        "guidance_parallel": 1.0, "guidance_norm": 0.0, "bit_confidence": [],
        "decoder_dtype": "bfloat16", "smooth": False, "top_k": 0,
        "aspect_ratio": "1:1", "budget": "32px", "checkpoint": "c", "batch": 4,
    }  # fmt: skip


def test_only_what_is_missing_is_drawn(run, tmp_path):
    run(tmp_path)
    files = pictures(tmp_path)
    before = [file.read_bytes() for file in files]
    files[2].unlink()
    files[3].write_bytes(files[3].read_bytes()[:-20])
    files[4].write_bytes(files[5].read_bytes())  # another picture
    for file in set(files) - {files[2]}:
        os.utime(file, (1, 1))
    run(tmp_path, skip_existing=True)
    assert pictures(tmp_path) == files and [file.read_bytes() for file in files] == before
    assert [int(file.stat().st_mtime) == 1 for file in files] == [True, True, False, False, False, True]
    for changes in ({"tau": (0.5,)}, {"batch": 3, "tau": (0.5,)}):
        run(tmp_path, skip_existing=True, **changes)
        assert not any(int(file.stat().st_mtime) == 1 for file in files)
        for file in files:
            os.utime(file, (1, 1))


def test_a_long_list_has_a_sheet_of_its_start(run, tmp_path, monkeypatch):
    monkeypatch.setattr(prompts_to_files, "_LARGEST_SHEET", 3)
    run(tmp_path / "all")
    run(tmp_path / "start", PROMPTS[:3])
    sheets = [tmp_path / name / "sheet.png" for name in ("all", "start")]
    assert sheets[0].read_bytes() == sheets[1].read_bytes()
    monkeypatch.setattr(prompts_to_files, "_SHEET_PIXELS", 2 * 32 * 32 + 1)
    run(tmp_path / "all", skip_existing=True)
    run(tmp_path / "start", PROMPTS[:2], skip_existing=True)
    assert sheets[0].read_bytes() == sheets[1].read_bytes()


def test_a_full_disk_ends_the_run(run, tmp_path, monkeypatch):
    real, calls, numbers = Path.write_bytes, [], itertools.count(1)

    def write_bytes(path, content):
        number = next(numbers)  # several threads write, and one of them must be the third
        calls.append(path)
        if number == 3:
            real(path, content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OSError, match="No space left") as error:
        run(tmp_path, PROMPTS * 2)
    assert str(tmp_path) in error.value.filename and error.value.filename.endswith(".png")
    assert 3 <= len(calls) <= 8, "nothing of the batches after it"
    for file in tmp_path.iterdir():
        assert picture_files.read_metadata(file) is not None and Image.open(file).load()


def test_an_interrupted_run_leaves_whole_pictures(run, tmp_path, monkeypatch):
    real = infinity_jax.InfinityPipeline.stream

    def stream(self, *args, **kwargs):
        yield next(real(self, *args, **kwargs))
        raise KeyboardInterrupt

    monkeypatch.setattr(infinity_jax.InfinityPipeline, "stream", stream)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    for file in tmp_path.iterdir():
        assert picture_files.read_metadata(file) is not None and Image.open(file).load()
    monkeypatch.setattr(infinity_jax.InfinityPipeline, "stream", real)
    run(tmp_path, skip_existing=True)
    assert len(pictures(tmp_path)) == 6


def test_notes(tmp_path):
    picture = Image.new("RGB", (2, 2))
    note = {"prompt": "café ❤", "seed": 2**32 - 1, "cfg": [1.0, 2.5]}
    picture_files.write_png(picture, tmp_path / "a.png", note)
    assert picture_files.read_metadata(tmp_path / "a.png") == json.loads(json.dumps(note))
    picture_files.write_png(picture, tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no picture")
    for name in ("b.png", "c.png", "d.png"):
        assert picture_files.read_metadata(tmp_path / name) is None
