"""`infinity-jax prepare`: one odd row is named and left out, the others are kept, and nothing else is touched."""

import errno
import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from helpers import pictures

from infinity_jax.data.originals import json_lines, tar_shards
from infinity_jax.data.originals.rows import Row, Skipped
from infinity_jax.data.prepared import prepare, shards, writer
from infinity_jax.data.prepared.record_set import MixedRecords
from infinity_jax.errors import UserError
from infinity_jax.files import pictures as picture_files


def records_of(out: Path):
    records = MixedRecords(f"records:{out}")
    return [records.read(bucket.ratio, 0, i) for bucket in records.buckets for i in range(bucket.sizes[0])]


def write_split(folder: Path, lines: list[str]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "0.jpg").write_bytes(pictures.jpeg(0))
    (folder / f"1.000_{len(lines):09d}.jsonl").write_text("\n".join(lines) + "\n")
    return f"jsonl:{folder}"


GOOD = '{"image_path": "0.jpg", "text": "good"}'
KEPT = {
    "half an emoji in the caption": r'{"image_path": "0.jpg", "text": "cut \ud83d"}',
    "half an emoji in a column of numbers": r'{"image_path": "0.jpg", "text": "a", "a\ud83d": 3}',
    "half an emoji in another column": r'{"image_path": "0.jpg", "text": "a", "b\ud83d": [3]}',
    "a zero byte in a column": r'{"image_path": "0.jpg", "text": "a", "a\u0000b": 3}',
    "an endless column": '{"image_path": "0.jpg", "text": "a", "' + "c" * 70_000 + '": 3}',
    "a number of 400 digits": '{"image_path": "0.jpg", "text": "a", "score": 1' + "0" * 400 + "}",
}
LEFT_OUT = {
    "half an emoji in the path": (r'{"image_path": "\ud83d.jpg", "text": "a"}', "no such file"),
    "a zero byte in the path": (r'{"image_path": "a\u0000b.jpg", "text": "a"}', "no such file"),
    "a path too long": ('{"image_path": "' + "x" * 300 + '.jpg", "text": "a"}', "cannot be read"),
    "a data url": ('{"image": "data:image/png;base64,' + "A" * 5000 + '", "text": "a"}', "cannot be read"),
    "deep lists": ("[" * 200_000, "not JSON"),
    "half an emoji where the path lacks": (r'{"x\ud83d": "a"}', "no image_path"),
}


@pytest.mark.parametrize("line", KEPT.values(), ids=KEPT.keys())
def test_an_odd_row_is_kept(tmp_path, line):
    summary = writer.prepare(write_split(tmp_path / "in", [GOOD, line, GOOD]), tmp_path / "out", 1)
    assert summary["pictures"] == len(records_of(tmp_path / "out")) == 3
    assert not summary["skipped"]["count"]


@pytest.mark.parametrize(("line", "reason"), LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_an_odd_row_is_left_out_and_named(tmp_path, line, reason):
    summary = writer.prepare(write_split(tmp_path / "in", [GOOD, line, GOOD]), tmp_path / "out", 1)
    assert summary["pictures"] == len(records_of(tmp_path / "out")) == 2
    assert summary["skipped"]["by_reason"] == {reason: 1}
    assert len(summary["skipped"]["rows"][0]["id"]) < 500


def test_half_an_emoji_becomes_a_question_mark(tmp_path):
    writer.prepare(write_split(tmp_path / "in", list(KEPT.values())[:1]), tmp_path / "out", 1)
    assert records_of(tmp_path / "out")[0]["captions"] == {"short": ["cut ?"]}


def test_deep_lists_in_a_folders_captions(tmp_path):
    (tmp_path / "0.jpg").write_bytes(pictures.jpeg(0))
    (tmp_path / "captions.jsonl").write_text('{"file": "0.jpg", "text": "a"}\n' + "[" * 200_000)
    summary = writer.prepare(f"folder:{tmp_path}", tmp_path / "out", 1)
    assert summary["pictures"] == 1 and summary["skipped"]["by_reason"] == {"not JSON": 1}


def add(tar: tarfile.TarFile, name: str, content: bytes):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def test_odd_members_of_a_tar(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, "b\udcff.jpg", pictures.jpeg(0))
        add(tar, "b\udcff.txt", b"a name that is not UTF-8")
        add(tar, "c.jpg", pictures.jpeg(1))
        add(tar, "c.json", b"[" * 200_000)
        add(tar, "d.txt", b"no picture")
        add(tar, "d.\udcff", b"no picture either")
    summary = writer.prepare(f"tar:{tmp_path}/a.tar", tmp_path / "out", 1)
    assert [record["id"] for record in records_of(tmp_path / "out")] == ["a.tar:b?"]
    assert summary["skipped"]["by_reason"] == {"not JSON": 1, "no picture": 1}


def test_what_nobody_thought_of_costs_one_row(tmp_path, monkeypatch):
    pack = shards.pack

    def fail_once(record):
        if record["captions"] == {"short": ["odd"]}:
            raise TypeError("what is this?")
        return pack(record)

    monkeypatch.setattr(shards, "pack", fail_once)
    lines = ['{"image_path": "0.jpg", "text": "odd"}', GOOD]
    summary = writer.prepare(write_split(tmp_path / "in", lines), tmp_path / "out", 1)
    assert summary["pictures"] == len(records_of(tmp_path / "out")) == 1
    assert "what is this?" in summary["skipped"]["rows"][0]["detail"]


def ten_pairs(tmp_path: Path) -> tuple[bytes, list[int]]:
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        for i in range(10):
            add(tar, f"{i}.jpg", pictures.jpeg(i))
            add(tar, f"{i}.txt", b"a caption")
    with tarfile.open(tmp_path / "whole.tar") as tar:
        return (tmp_path / "whole.tar").read_bytes(), [member.offset for member in tar]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("damage", ["header", "cut in a header", "cut between members", "cut in a picture"])
def test_a_damaged_tar_is_said(tmp_path, damage, compressed):
    content, starts = ten_pairs(tmp_path)
    at = starts[10]  # the sixth picture
    damaged = {
        "header": content[: at + 20] + b"\xff" * 20 + content[at + 40 :],
        "cut in a header": content[: at + 100],
        "cut between members": content[:at],
        "cut in a picture": content[: at + 700],
    }[damage]
    file = tmp_path / "damaged.tar"
    file.write_bytes(gzip.compress(damaged) if compressed else damaged)
    rows = list(tar_shards.TarPart(file).rows())
    assert [row.id for row in rows if isinstance(row, Row)][:5] == [f"damaged.tar:{i}" for i in range(5)]
    assert [row.kind for row in rows if isinstance(row, Skipped)].count("broken tar") == 1


def test_a_whole_tar_ends_with_zeros_and_an_empty_one_too(tmp_path):
    ten_pairs(tmp_path)
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    assert [type(row) for row in tar_shards.TarPart(tmp_path / "whole.tar").rows()] == [Row] * 10
    assert not list(tar_shards.TarPart(tmp_path / "empty.tar").rows())


def test_hidden_files_of_others_stay(tmp_path):
    source = write_split(tmp_path / "in", [GOOD])
    parts = tmp_path / "out" / "parts"
    (parts / ".git").mkdir(parents=True)
    (parts / ".DS_Store").write_text("a")
    for left in (".00000.123", ".00000"):
        (parts / left).mkdir()
    assert writer.prepare(source, tmp_path / "out", 1)["pictures"] == 1
    assert {file.name for file in parts.iterdir()} == {".git", ".DS_Store", "00000"}


def test_nothing_is_removed_where_another_set_lies(tmp_path):
    out = tmp_path / "out"
    writer.prepare(write_split(tmp_path / "in", [GOOD]), out, 1)
    (out / "parts" / ".00001.123").mkdir()
    with pytest.raises(UserError, match="give another --out"):
        writer.prepare(write_split(tmp_path / "other", [GOOD]), out, 1)
    assert (out / "parts" / ".00001.123").is_dir()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES])
def test_space_is_advised_where_space_lacks(tmp_path, monkeypatch, number):
    def fail(*_):
        raise OSError(number, "said by the disk")

    monkeypatch.setattr(writer, "_write_part", fail)
    with pytest.raises(UserError, match=r"said by the disk.*the same command resumes it") as caught:
        writer.prepare(write_split(tmp_path / "in", [GOOD]), tmp_path / "out", 1)
    assert ("free some space" in str(caught.value)) == (number in (errno.ENOSPC, errno.EDQUOT))


def test_a_path_means_the_same_whatever_stood_before_it(tmp_path):
    """`b.jpg` lies beside the splits and above them; rows before that lie above change nothing."""
    splits = tmp_path / "splits"
    splits.mkdir()
    for file in (splits / "b.jpg", tmp_path / "b.jpg", tmp_path / "a.jpg"):
        file.write_bytes(file.parent.name.encode())
    rows = [json.dumps({"image_path": name, "text": "a"}) for name in ("a.jpg", "b.jpg")]
    (splits / "1.000_000000002.jsonl").write_text("\n".join(rows))
    [part] = json_lines.find_parts(splits)
    found = [row.image for row in part.rows() if isinstance(row, Row)]
    assert found == [tmp_path / "a.jpg", splits / "b.jpg"]


@pytest.mark.parametrize("source", ["jsonl:a", "tfds:a", "tar:a"])
def test_what_only_shards_are_made_of_needs_a_folder(source):
    with pytest.raises(UserError, match="needs --out DIR"):
        prepare.main(source)


def test_a_line_that_would_fill_the_memory_is_one_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "MOST_LINE", 1000)
    long = '{"image_path": "0.jpg", "text": "' + "a" * 5000 + '"}'
    write_split(tmp_path, [GOOD, long, GOOD, "b" * 999, "c" * 1000, GOOD])
    rows = [row for part in json_lines.find_parts(tmp_path) for row in part.rows()]
    assert [isinstance(row, Row) for row in rows] == [True, False, True, False, False, True]
    assert [row.detail for row in rows if isinstance(row, Skipped)][::2] == ["more than 1000 bytes"] * 2


def test_members_of_a_tar_that_would_fill_the_memory_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_files, "MOST_BYTES", 10_000)
    monkeypatch.setattr(tar_shards, "MOST_TEXT", 1000)
    members = {
        "a.jpg": pictures.jpeg(0),
        "a.txt": b"a cat",
        "b.jpg": b"\0" * 10_001,
        "b.txt": b"b",
        "c.bin": b"\0" * 50_000,
    }
    members |= {"c.jpg": pictures.jpeg(1), "c.txt": b"c" * 1001}
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    first, second, third = tar_shards.TarPart(tmp_path / "a.tar").rows()
    assert isinstance(first, Row) and first.captions == {"short": ["a cat"]}
    assert isinstance(second, Row) and second.image == b"", "an empty file, as `prepare` will say"
    assert isinstance(third, Skipped) and third.kind == "no caption"
