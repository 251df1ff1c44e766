"""A write that fails, as on a full disk, leaves what was there before and nothing else."""

import csv
import json

import numpy as np
import pytest
from helpers.full_disks import full_disk
from PIL import Image

from infinity_jax.checkpoints import folder
from infinity_jax.data.prepared import writer
from infinity_jax.errors import UserError
from infinity_jax.files import atomic, caches, pictures
from infinity_jax.files.lazy_tensor import dtype_named
from infinity_jax.files.safetensors_writer import SafetensorsWriter
from infinity_jax.tools.scaling import table
from infinity_jax.training.run_log import MetricsWriter

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
LONG = "a long text " * 1000


def write_safetensors(path):
    shape = {"x": (dtype_named("float32"), (1000,))}
    with atomic.writing(path) as temporary, SafetensorsWriter(temporary, shape) as file:
        file.write("x", np.ones(1000, np.float32))


WRITERS = {
    "text.txt": lambda path: atomic.write_text(path, LONG),
    "bytes": lambda path: atomic.write_bytes(path, LONG.encode()),
    "numbers.json": lambda path: atomic.write_json(path, {"text": LONG}),
    "picture.png": lambda path: pictures.write(Image.fromarray(NOISE), path, {"seed": 1}),
    "picture.jpg": lambda path: pictures.write(Image.fromarray(NOISE), path, {"seed": 1}),
    "config.json": lambda path: folder.write_config(path.parent, {"text": LONG}),
    "tokenizer.safetensors": lambda path: folder.write_arrays(path, {"x": np.ones(1000)}, "float32"),
    "table.csv": lambda path: table.write(path, [{"label": LONG}]),
    "weights.safetensors": write_safetensors,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_content_and_is_named(name, tmp_path):
    path, write = tmp_path / name, WRITERS[name]
    path.write_bytes(b"old")
    with full_disk(), pytest.raises(OSError, match="File too large") as error:
        write(path)
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    write(path)
    assert path.stat().st_size > 2000 and list(tmp_path.iterdir()) == [path]


def test_a_cache_says_where_it_may_lie_instead(tmp_path):
    path = tmp_path / "features.npy"
    path.write_bytes(b"old")
    expected = pytest.raises(UserError, match=r"features.npy.*free some space.*INFINITY_DATA")
    with full_disk(), expected, caches.writing(path, 4000) as temporary:
        caches.reserve(temporary, (1000,), np.float32)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_metrics_that_cannot_be_cut_stay(tmp_path):
    lines = [json.dumps({"step": step, "text": "x" * 100}) + "\n" for step in range(100)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    with full_disk(), pytest.raises(OSError, match="File too large"):
        MetricsWriter(tmp_path, start_step=50)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(lines)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_another_error_leaves_the_old_content_too(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic.writing(path) as temporary:
        temporary.write_text("new")
        raise KeyboardInterrupt
    with pytest.raises(FileNotFoundError, match="elsewhere"), atomic.writing(path):
        (tmp_path / "elsewhere").read_text()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with atomic.writing(path) as first, atomic.writing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named_by_the_file(tmp_path):
    path = tmp_path / "none" / "a.json"
    with pytest.raises(FileNotFoundError) as error:
        atomic.write_json(path, {})
    assert error.value.filename == str(path)


def test_json_keeps_any_text(tmp_path):
    content = {"prompt": "蘋果, \U0001f34e", "path": "/data/\udcff"}
    atomic.write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == content
    assert "蘋果" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "part"
    with pytest.raises(RuntimeError), atomic.writing_folder(path) as temporary:
        (temporary / "a").write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with atomic.writing_folder(path) as temporary:
        (temporary / "a").write_text("whole")
    with pytest.raises(OSError), atomic.writing_folder(path) as temporary:
        (temporary / "a").write_text("second")
    assert (path / "a").read_text() == "whole" and list(tmp_path.iterdir()) == [path]


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    """Also of earlier versions, whose names had a process number or nothing in place of the token."""
    for name in (".1.png.0123456789abcdef.unfinished", ".1.png.4711.unfinished", ".1.png.unfinished"):
        (tmp_path / name).write_text("half")
    (tmp_path / ".1.png.ff.unfinished").mkdir()
    others = {"1.png", ".11.png.0123456789abcdef.unfinished", ".2.png.unfinished", ".1.png.txt"}
    for name in others:
        (tmp_path / name).write_text("kept")
    atomic.remove_unfinished([tmp_path / "1.png"])
    assert {path.name for path in tmp_path.iterdir()} == others


def test_leftovers_of_prepared_parts_are_removed(tmp_path):
    for name in (".00012.4711", ".00012", ".00013.0123456789abcdef.unfinished", "00014"):
        (tmp_path / "parts" / name).mkdir(parents=True)
    with writer.locked(tmp_path, {"source": "jsonl:a"}):
        assert [path.name for path in (tmp_path / "parts").iterdir()] == ["00014"]


def test_table_is_read_as_written(tmp_path):
    table.write(tmp_path / "table.csv", [{"label": "a\nb"}])
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as lines:
        assert [row["label"] for row in csv.DictReader(lines)] == ["a\nb"]
