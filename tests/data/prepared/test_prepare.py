"""`infinity-jax prepare --out`: every source, every breakage named, killed and gone on, nothing else taken for it."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from helpers import paths
from helpers import pictures as synthetic_pictures
from PIL import Image

from infinity_jax import scales
from infinity_jax.data import pictures
from infinity_jax.data.prepared import writer
from infinity_jax.data.prepared.record_set import MixedRecords
from infinity_jax.errors import UserError

COUNT = 23 * 33  # each kind of breakage once, and one picture more


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    return folder, *synthetic_pictures.write_release(folder, COUNT, side=40)


@pytest.fixture(scope="module")
def prepared(release, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    return out, writer.prepare(f"jsonl:{release[0] / 'splits'}", out, workers=2)


def all_records(out: Path):
    records = MixedRecords(f"records:{out}")
    return [
        (bucket.ratio, records.read(bucket.ratio, 0, i))
        for bucket in records.buckets
        for i in range(bucket.sizes[0])
    ]


def file_of(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def test_every_good_picture_is_there_once_in_its_ratio(release, prepared):
    folder, good, _ = release
    out, summary = prepared
    found = all_records(out)
    assert Counter(file_of(record["id"]) for _, record in found) == dict.fromkeys(good, 1)
    assert summary["pictures"] == len(good) and sum(summary["by_ratio"].values()) == len(good)
    for ratio, record in found[::20]:
        name = file_of(record["id"])
        assert record["image"] == (folder / "images" / name).read_bytes()
        with Image.open(folder / "images" / name) as image:
            assert ratio == scales.nearest_aspect_ratio(image.height, image.width)
        text = synthetic_pictures.caption(int(Path(name).stem))
        assert record["captions"]["short"] == [text] and record["captions"]["long"][0].startswith(text)


def test_every_bad_one_is_named_with_its_reason(release, prepared):
    _, _, bad = release
    out, summary = prepared
    rows = json.loads((out / "report.json").read_text())["skipped"]["rows"]
    assert {file_of(row["id"]) for row in rows} == bad.keys() and len(rows) == len(bad)
    reasons = {bad[file_of(row["id"])]: row["reason"] for row in rows}
    assert reasons.items() >= synthetic_pictures.REASONS.items()
    assert sum(summary["skipped"]["by_reason"].values()) == summary["skipped"]["count"] == len(bad)


def test_the_report_tells_of_captions_and_columns(prepared):
    _, summary = prepared
    assert (
        summary["captions"]["short"]["count"] == summary["captions"]["long"]["count"] == summary["pictures"]
    )
    assert 0 < summary["captions"]["short"]["shortest"] <= summary["captions"]["short"]["median"]
    assert (
        summary["columns"]["scores"] == {"aesthetic": summary["pictures"]}
        and not summary["columns"]["unread"]
    )


def test_a_second_run_changes_nothing_and_another_source_is_refused(release, prepared):
    out, summary = prepared
    before = {file: file.stat().st_mtime_ns for file in (out / "parts").rglob("*")}
    assert writer.prepare(f"jsonl:{release[0] / 'splits'}", out, workers=1) == summary
    assert before == {file: file.stat().st_mtime_ns for file in (out / "parts").rglob("*")}
    split = next((release[0] / "splits").iterdir())
    with pytest.raises(UserError, match="give another --out"):
        writer.prepare(f"jsonl:{split}", out, workers=1)


STOPPED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its background jobs ignore it
from infinity_jax.cli import main as cli
from infinity_jax.data import pictures
check, seen = pictures.check, []
def stop_at_the_400th(content):
    seen.append(content)
    if len(seen) == 400:
        os.kill(os.getpid(), int(sys.argv[1]))
    return check(content)
pictures.check = stop_at_the_400th
sys.exit(cli.main(["prepare", "--workers", "1", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_and_gone_on_is_as_undisturbed(release, prepared, tmp_path, number):
    environment = {**os.environ, "PYTHONPATH": paths.PYTHONPATH}
    command = [sys.executable, "-c", STOPPED, str(int(number))]
    command += ["--source", f"jsonl:{release[0] / 'splits'}", "--out", str(tmp_path)]
    stopped = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert stopped.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in stopped.stderr
    assert [part.name for part in (tmp_path / "parts").glob("0*")] == ["00000"]
    with pytest.raises(UserError, match="is not finished"):
        MixedRecords(f"records:{tmp_path}")
    before = (tmp_path / "parts" / "00000").stat().st_mtime_ns
    summary = writer.prepare(f"jsonl:{release[0] / 'splits'}", tmp_path, workers=2)
    assert summary == prepared[1] and before == (tmp_path / "parts" / "00000").stat().st_mtime_ns
    assert all_records(tmp_path) == all_records(prepared[0])
    assert len(list((tmp_path / "parts").iterdir())) == 3


def test_a_full_disk_is_said_and_the_same_command_goes_on(release, prepared, tmp_path):
    environment = {**os.environ, "PYTHONPATH": paths.PYTHONPATH}
    full = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    full += (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (66000, 66000)); from infinity_jax.cli import main as cli;"
    )
    full += "sys.exit(cli.main(['prepare', '--workers', '1', *sys.argv[1:]]))"
    source = f"jsonl:{release[0] / 'splits'}"
    command = [sys.executable, "-c", full, "--source", source, "--out", str(tmp_path)]
    stopped = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (
        stopped.returncode == 2 and "free some space" in stopped.stderr and "Traceback" not in stopped.stderr
    )
    assert writer.prepare(source, tmp_path, workers=1) == prepared[1]


def test_paths_may_begin_anywhere_above_the_splits(tmp_path):
    """The release's sample names its pictures from the folder that training is started in."""
    splits = tmp_path / "data" / "toy" / "splits"
    splits.mkdir(parents=True)
    (tmp_path / "data" / "toy" / "a.jpg").write_bytes(synthetic_pictures.flat(0, 80, 40, "JPEG"))
    rows = [
        {
            "image_path": path,
            "h_div_w": 2.0,
            "long_caption": "A tower. Of stone --ar 1:2",
            "long_caption_type": "x",
        }
        for path in ("data/toy/a.jpg", "a.jpg", str(tmp_path / "data" / "toy" / "a.jpg"), "toy/b.jpg")
    ]
    (splits / "2.000_000000004.jsonl").write_text("\n".join(map(json.dumps, rows)))
    summary = writer.prepare(f"jsonl:{splits}", tmp_path / "out", workers=1)
    assert summary["by_ratio"] == {"2:1": 3} and summary["skipped"]["by_reason"] == {"no such file": 1}
    assert all(r["captions"] == {"long": ["A tower. Of stone"]} for _, r in all_records(tmp_path / "out"))


def test_a_folder_with_captions(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.jpg").write_bytes(synthetic_pictures.jpeg(i))
    (folder / "captions.csv").write_text(
        "file_name,caption,aesthetic,artist\n0.jpg,nought,1.5,A\n1.jpg,one,,B\n2.jpg,--ar 1:1,2,C\n9.jpg,nine,3,D\n"
    )
    summary = writer.prepare(f"folder:{folder}", tmp_path / "out", workers=1)
    assert summary["pictures"] == 2
    assert summary["columns"] == {"scores": {"aesthetic": 1}, "unread": {"artist": 2}}
    assert summary["skipped"]["by_reason"] == {"no caption": 1, "no such file": 1}


def add(tar: tarfile.TarFile, name: str, content: bytes):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def test_tar_shards(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(3):
            add(tar, f"d/{i}.jpg", synthetic_pictures.jpeg(i))
            add(tar, f"d/{i}.txt", f"picture {i}".encode())
        add(tar, "d/3.json", b'{"long_caption": "long", "text": "short", "watermark": 0.25}')
        add(tar, "d/3.webp", synthetic_pictures.jpeg(3, format="WEBP"))
        add(tar, "d/4.txt", b"no picture")
        add(tar, "d/5.png", synthetic_pictures.jpeg(5, format="PNG"))
        add(tar, "d/6.png", b"")
        add(tar, "d/6.txt", b"empty")
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[: len(content) // 3])
    summary = writer.prepare(f"tar:{tmp_path}/a*.tar", tmp_path / "out", workers=1)
    assert summary["pictures"] == 4
    assert summary["skipped"]["by_reason"] == {"no picture": 1, "no caption": 1, "empty file": 1}
    captions = {record["id"]: record["captions"] for _, record in all_records(tmp_path / "out")}
    assert captions["a.tar:d/1"] == {"short": ["picture 1"]}
    assert captions["a.tar:d/3"] == {"long": ["long"], "short": ["short"]}
    cut = writer.prepare(f"tar:{tmp_path}/cut.tar", tmp_path / "cut", workers=1)
    assert "broken tar" in cut["skipped"]["by_reason"]


def test_refusals_say_what_to_do(tmp_path):
    for source, words in {
        "jsonl:/nowhere": "no folder /nowhere",
        f"jsonl:{tmp_path}": r"no file named \[h_div_w\]_\[num\].jsonl",
        "tar:/nowhere/*.tar": "no file is named",
        "tfds:no_such_set": "cannot open 'no_such_set'",
        "csv:x": "jsonl:DIR, folder:DIR",
    }.items():
        with pytest.raises(UserError, match=words):
            writer.prepare(source, tmp_path / "out", workers=1)


def test_a_set_without_a_good_picture_is_explained(tmp_path):
    (tmp_path / "1.000_000000001.jsonl").write_text('{"image_path": "none.jpg", "text": "a"}\n')
    out = tmp_path / "out"
    for _ in range(2):
        with pytest.raises(UserError, match=r"has no usable picture; .*report\.json says why"):
            writer.prepare(f"jsonl:{tmp_path}", out, workers=1)
    assert json.loads((out / "report.json").read_text())["skipped"]["by_reason"] == {"no such file": 1}
    with pytest.raises(UserError, match=r"report\.json"):
        MixedRecords(f"records:{tmp_path / 'out'}")


@pytest.mark.parametrize("kind", synthetic_pictures.BROKEN)
def test_what_prepare_calls_broken_training_does_too(kind):
    content = synthetic_pictures.BROKEN[kind](5)
    for decode in (pictures.check, lambda content: pictures.decode(content, 32, 32)):
        with pytest.raises(pictures.BrokenPicture):
            decode(content)


def test_a_folder_that_cannot_be_written_is_said(release, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    source = f"jsonl:{release[0] / 'splits'}"
    (out / "parts").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        writer.prepare(source, out, workers=1)
