"""A user's folder of pictures: what is read, what is skipped and named, what is refused."""

import json
import logging

import pytest
from PIL import Image

from infinity_jax.data import folder as folder_module
from infinity_jax.data.listing import CAPTION_FILES
from infinity_jax.data.prepared import writer
from infinity_jax.data.sources import open_source
from infinity_jax.errors import UserError


@pytest.fixture
def log(caplog):
    logging.getLogger("absl").propagate = True
    caplog.set_level(logging.WARNING)
    return caplog


def picture(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


def make(folder, count, captions="captions.csv"):
    names = [f"p{i}.png" for i in range(count)]
    for name in names:
        picture(folder / name)
    if captions.endswith("csv"):
        lines = ["file_name,caption", *(f'{name},"a square, no. {i}"' for i, name in enumerate(names))]
    else:
        lines = [json.dumps({"image": name, "text": f"a square, no. {i}"}) for i, name in enumerate(names)]
    (folder / captions).write_text("\n".join(lines) + "\n")
    return folder


def opened(folder, split="train"):
    return open_source(f"folder:{folder}", split, folder / ".." / "data")


@pytest.mark.parametrize("captions", CAPTION_FILES)
def test_every_captions_file_is_read(tmp_path, captions):
    source = opened(make(tmp_path / "f", 3, captions))
    assert [source[i]["caption"] for i in range(len(source))] == [f"a square, no. {i}" for i in range(3)]
    assert source[1]["image"] == (tmp_path / "f" / "p1.png").read_bytes()


def test_breakage_is_skipped_counted_and_named(tmp_path, log):
    folder = tmp_path / "f"
    for name in ("good.png", "deep/good.webp", "cut.png", "bare.png", "unnamed.png"):
        picture(folder / name)
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:45])
    (folder / "text.jpg").write_text("not a picture")
    (folder / "empty.png").write_bytes(b"")
    lines = [
        {"file_name": "good.png", "caption": "good"},
        {"file_name": "missing.png", "caption": "missing"},
        {"file_name": "cut.png", "caption": "cut"},
        {"file_name": "text.jpg", "caption": "text"},
        {"file_name": "empty.png", "caption": "empty"},
        {"file_name": "bare.png", "caption": "  "},
        {"caption": "no file"},
        ["a list"],
        {"file_name": "deep/good.webp", "caption": "deep"},
    ]
    text = [json.dumps(line) for line in lines]
    (folder / "captions.jsonl").write_text("\n".join([*text[:5], "{broken", "", *text[5:]]))
    for _ in range(2):  # The second time from the kept findings.
        log.clear()
        source = opened(folder)
        assert [source[i]["caption"] for i in range(len(source))] == ["good", "deep"]
        for line, words in {
            2: "missing.png: no such file",
            3: "cut.png: ",
            4: "text.jpg: ",
            5: "empty.png: ",
            6: "not JSON",
            8: "bare.png: no caption",
            9: "no picture",
            10: "not a JSON object",
        }.items():
            assert any(f"line {line} skipped: {words}" in message for message in log.messages)
        assert any("8 of 10 rows skipped" in message for message in log.messages)


def test_findings_are_kept_until_a_picture_changes(tmp_path, monkeypatch):
    folder = make(tmp_path / "f", 3)
    decoded = []
    decode = folder_module.pictures.decode_rgb
    monkeypatch.setattr(folder_module.pictures, "decode_rgb", lambda b: decoded.append(b) or decode(b))
    for _ in range(2):
        assert len(opened(folder)) == 3
    assert len(decoded) == 3
    (folder / "p1.png").write_bytes(b"broken now")
    assert len(opened(folder)) == 2 and len(decoded) == 4
    for cache in (tmp_path / "data" / "folder_checks").iterdir():
        cache.write_text("{damaged")
    assert len(opened(folder)) == 2


def test_validation_share(tmp_path):
    few = make(tmp_path / "few", 19)
    assert (len(opened(few)), len(opened(few, "validation"))) == (19, 0)
    many = make(tmp_path / "many", 60)
    train, validation = opened(many), opened(many, "validation")
    names = [{source[i]["id"] for i in range(len(source))} for source in (train, validation)]
    assert len(names[0]) + len(names[1]) == 60 and len(names[1]) >= 1 and not names[0] & names[1]
    assert len(opened(many, "compositions")) == 0


def test_captions_of_one_picture_share_a_split():
    entries = [folder_module.Entry(i, f"p{i % 100}.png", str(i)) for i in range(300)]
    splits = folder_module.split_entries(entries)
    files = {split: {entry.file for entry in kept} for split, kept in splits.items()}
    assert not files["train"] & files["validation"]
    assert len(splits["train"]) + len(splits["validation"]) == 300


def test_refusals_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*folder:PATH"):
        opened(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match=r"no captions file; add one of captions\.csv"):
        opened(tmp_path / "bare")
    (tmp_path / "bare" / "captions.csv").write_text("name,words\na.png,b\n")
    with pytest.raises(UserError, match="has the columns name, words; it needs file_name"):
        opened(tmp_path / "bare")
    (tmp_path / "bare" / "captions.csv").write_text("file,text\na.png,b\n")
    with pytest.raises(UserError, match=r"no usable picture.*line 2: a.png: no such file"):
        opened(tmp_path / "bare")
    (tmp_path / "bare" / "captions.csv").write_bytes(b"file,text\n\xff\xfe.png,b\n")
    with pytest.raises(UserError, match="UTF-8"):
        opened(tmp_path / "bare")
    (tmp_path / "bare" / "metadata.jsonl").write_text("{}")
    with pytest.raises(UserError, match="several captions files"):
        opened(tmp_path / "bare")


def test_a_picture_that_goes_away_is_named(tmp_path):
    source = opened(make(tmp_path / "f", 2))
    (tmp_path / "f" / "p0.png").unlink()
    with pytest.raises(UserError, match=r"p0\.png cannot be read any more"):
        source[0]


def test_a_csv_row_with_a_comma_that_is_not_quoted_is_named(tmp_path, log):
    folder = make(tmp_path / "f", 3)
    (folder / "captions.csv").write_text("file,text\np0.png,one\np1.png,one, two, three\np2.png\n")
    assert [opened(folder)[i]["caption"] for i in range(len(opened(folder)))] == ["one"]
    assert any("line 3 skipped: more columns than the header" in message for message in log.messages)
    assert any("2 of 3 rows skipped" in message for message in log.messages)
    summary = writer.prepare(f"folder:{folder}", tmp_path / "out", 1)
    assert summary["skipped"]["by_reason"] == {"more columns than the header": 1, "no caption": 1}
    assert summary["skipped"]["rows"][0] == {
        "id": "line 3",
        "reason": "more columns than the header",
        "detail": "quote captions that have commas",
    }


@pytest.mark.parametrize("rows", ['p0.png,"open\np1.png,x\np2.png,y\n', 'p0.png,"a" b\n'])
def test_a_quote_that_is_not_closed_is_refused(tmp_path, rows):
    folder = make(tmp_path / "f", 3)
    (folder / "captions.csv").write_text("file,text\np1.png,fine\n" + rows)
    with pytest.raises(UserError, match=r"captions\.csv: the row that begins in line 3: .*quotes"):
        opened(folder)


def test_half_an_emoji_becomes_a_question_mark(tmp_path):
    folder = make(tmp_path / "f", 1)
    (folder / "captions.csv").unlink()
    (folder / "captions.jsonl").write_text('{"file": "p0.png", "text": "cut \\ud83d"}')
    assert opened(folder)[0]["caption"] == "cut ?"
