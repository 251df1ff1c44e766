"""Prompt files of the field's benchmarks: where their pictures belong, and what is said of damaged ones."""

import json
import shlex
from pathlib import Path

import pytest
from helpers import prompts

from infinity_jax.errors import UserError
from infinity_jax.evaluation.benchmarks import layouts
from infinity_jax.evaluation.benchmarks.layouts import BENCHMARKS


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_picture_lies_where_its_evaluator_looks(name, tmp_path):
    benchmark = BENCHMARKS[name]
    found = layouts.read(benchmark, prompts.write(name, tmp_path))
    paths = [str(Path(benchmark.folder) / file) for prompt in found.prompts for file in prompt.files]
    assert paths == prompts.FILES[name]
    assert {len(p.files) for p in found.prompts} == {1 if benchmark.grid else benchmark.pictures}


def test_geneval_gets_each_line_of_its_file_back(tmp_path):
    found = layouts.read(BENCHMARKS["geneval"], prompts.write("geneval", tmp_path))
    for i, prompt in enumerate(found.prompts):
        ((path, text),) = prompt.texts.items()
        assert path == f"{i:05d}/metadata.jsonl" and json.loads(text) == prompts.GENEVAL[i]
    assert found.prompts[2].text == "a red car"


def test_texts_and_their_order(tmp_path):
    texts = {
        name: [p.text for p in layouts.read(BENCHMARKS[name], prompts.write(name, tmp_path / name)).prompts]
        for name in ("dpg", "hpsv2", "coco")
    }
    assert texts["dpg"] == ["a red ball on a table", "a blue cat"]
    assert texts["hpsv2"][1:3] == ["a cat", "a heart, concept-art"]
    assert texts["coco"] == ["Some food.", "A man with a red helmet."], "the caption with the lowest id"


def test_a_limit_takes_the_first_and_the_hash_is_of_the_whole(tmp_path):
    path = prompts.write("geneval", tmp_path)
    few, every = (layouts.read(BENCHMARKS["geneval"], path, limit) for limit in (2, None))
    assert few.prompts == every.prompts[:2] and few.sha256 == every.sha256
    path.write_text(path.read_text().replace("red", "blue"))
    assert layouts.read(BENCHMARKS["geneval"], path).sha256 != every.sha256


@pytest.mark.parametrize("name", BENCHMARKS)
def test_commands_name_the_folder_that_has_the_pictures(name, tmp_path):
    benchmark = BENCHMARKS[name]
    commands = benchmark.next_commands(tmp_path / "my out", tmp_path / "p.json", 1024)
    words = shlex.split(commands[0])
    assert str(tmp_path / "my out" / benchmark.folder) in words or name == "image_reward"
    if name == "image_reward":
        assert words[words.index("--img_dir") + 1] == str(tmp_path / "my out")
        assert words[words.index("--model") + 1] == benchmark.folder
    if name == "dpg":
        assert words[-1] == "1024"


DAMAGED = {
    "no JSON in a line": ("geneval", '{"tag": "a", "prompt": "b"}\n{"tag": \n', "line 2: no valid JSON"),
    "a line without a prompt": ("geneval", '{"tag": "a"}\n', "line 1: it has no 'prompt'"),
    "an empty prompt": ("geneval", '{"tag": "a", "prompt": " "}', "line 1: prompt 1 of 1 is empty"),
    "a number for a prompt": ("geneval", '{"tag": "a", "prompt": 3}', "line 1: no text but 3"),
    "a line that is a list": ("geneval", "[1]\n", r"line 1: no object but \[1\]"),
    "an empty file": ("geneval", "", "line 1: no valid JSON"),
    "cut short": ("image_reward", '[{"id": "a",\n "prompt": "b"},\n {"id', "line 3: no valid JSON"),
    "an object for a list": ("image_reward", '{"a": 1}', 'no list but {"a": 1}'),
    "nothing in it": ("image_reward", "[]", "holds no prompts"),
    "no id": (
        "image_reward",
        '\n[\n {"id": "a",\n  "prompt": "b"},\n\n {"prompt": "b"}]',
        "line 6, entry 2: it has no 'id'",
    ),
    "a path for an id": ("image_reward", '[{"id": "../a", "prompt": "b"}]', 'entry 1: "../a" cannot name'),
    "an id twice": (
        "image_reward",
        '[{"id": "a", "prompt": "b"}, {"id": "a", "prompt": "c"}]',
        "'a_0.png' comes twice",
    ),
    "no category": ("mjhq", '{"k": {"prompt": "b"}}', "entry 'k': it has no 'category'"),
    "text for an entry": ("mjhq", '{"k": "b"}', "entry 'k': no object"),
    "no annotations": ("coco", '{"images": []}', "it has no 'annotations'"),
    "no caption": (
        "coco",
        '{"annotations": [{"image_id": 1, "id": 2}]}',
        "annotation 1: it has no 'caption'",
    ),
    "text for a number": (
        "coco",
        '{"annotations": [{"image_id": "1", "id": 2, "caption": "a"}]}',
        "annotation 1: image_id '1'",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_named_with_the_place(case, tmp_path):
    name, content, message = DAMAGED[case]
    file = tmp_path / "prompts.json"
    file.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        layouts.read(BENCHMARKS[name], file)
    assert str(file) in str(error.value)


def test_files_that_are_not_there_or_not_text(tmp_path):
    for name in BENCHMARKS:
        with pytest.raises(UserError, match=str(tmp_path / "nowhere")):
            layouts.read(BENCHMARKS[name], tmp_path / "nowhere")
    with pytest.raises(UserError, match="are a folder; name the benchmark's own file"):
        layouts.read(BENCHMARKS["coco"], tmp_path)
    file = tmp_path / "e.jsonl"
    file.write_bytes(b'{"tag": "a", "prompt": "b"}\n{"tag": "a", "prompt": "\xff"}\n')
    with pytest.raises(UserError, match=r"e.jsonl, line 2: not UTF-8"):
        layouts.read(BENCHMARKS["geneval"], file)
    styles = prompts.write("hpsv2", tmp_path / "hps")
    (styles / "photo.json").unlink()
    with pytest.raises(UserError, match=r"photo.json: No such file"):
        layouts.read(BENCHMARKS["hpsv2"], styles)
    (styles / "photo.json").write_text('["a", 3]')
    with pytest.raises(UserError, match=r"photo.json, line 1, entry 2: no text but 3"):
        layouts.read(BENCHMARKS["hpsv2"], styles)
    texts = prompts.write("dpg", tmp_path / "dpg")
    (texts / "5.txt").write_text("\n")
    with pytest.raises(UserError, match=r"5.txt, line 1: prompt 1 of 1 is empty"):
        layouts.read(BENCHMARKS["dpg"], texts)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_few_prompts_for_an_evaluator_that_needs_all_are_said_so(name, tmp_path, caplog):
    file = prompts.write(name, tmp_path)
    layouts.read(BENCHMARKS[name], file, limit=1)
    warned = "needs pictures of all" in caplog.text
    assert warned == (name in ("hpsv2", "image_reward"))
