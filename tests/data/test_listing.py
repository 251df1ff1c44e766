"""Folders without a captions file: texts beside the pictures, and folders named for what they show."""

import logging
import os

import pytest
from PIL import Image

from infinity_jax.data.listing import MOST_CHARACTERS
from infinity_jax.data.prepared import writer
from infinity_jax.data.sources import open_source
from infinity_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for name in ("cat.png", "dogs/dog.webp", "dogs/Big_Dog.JPG", ".hidden/no.png"):
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "f" / name)
    return tmp_path / "f"


def captions(folder):
    source = open_source(f"folder:{folder}", "train", folder.parent / "data")
    records = [source[i] for i in range(len(source))]
    return {record["id"]: record["caption"] for record in records}


@pytest.fixture
def log(caplog):
    logging.getLogger("absl").propagate = True
    caplog.set_level(logging.WARNING)
    return caplog


def test_texts_beside_pictures_give_their_first_line_with_words(folder, log):
    (folder / "cat.txt").write_text("\ufeff\n  A   cat.\nfr=Un chat.\n", "utf-8")
    (folder / "dogs" / "dog.txt").write_text("A dog.", "utf-8")
    assert captions(folder) == {"cat.png:1": "A cat.", "dogs/dog.webp:3": "A dog."}
    assert any(
        "picture 2 skipped: no caption: there is no Big_Dog.txt beside dogs/Big_Dog.JPG" in message
        for message in log.messages
    )


def test_a_text_that_is_empty_or_not_utf8_leaves_its_picture_out(folder, log):
    (folder / "cat.txt").write_text(" \n")
    (folder / "dogs" / "dog.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(
        UserError, match=r"no usable picture; the first of 3, picture 1: cat\.png: no caption"
    ):
        captions(folder)
    assert any("picture 3 skipped: no caption: dog.txt" in message for message in log.messages)


def test_texts_that_are_no_files_or_huge_do_not_stop_the_reader(folder):
    (folder / "cat.txt").write_text("word " * 10**6)
    os.mkfifo(folder / "dogs" / "dog.txt")
    (folder / "dogs" / "Big_Dog.txt").symlink_to("/dev/zero")
    (caption,) = captions(folder).values()
    assert len(caption) <= MOST_CHARACTERS


def test_folders_name_what_their_pictures_show(folder, log):
    (folder / "big_cats").mkdir()
    (folder / "cat.png").rename(folder / "big_cats" / "1.png")
    assert captions(folder) == {
        "big_cats/1.png:1": "big cats",
        "dogs/Big_Dog.JPG:2": "dogs",
        "dogs/dog.webp:3": "dogs",
    }
    Image.new("RGB", (8, 8)).save(folder / "stray.png")
    assert len(captions(folder)) == 3
    assert any("no caption: stray.png lies beside the folders" in message for message in log.messages)


def test_a_captions_file_wins(folder):
    (folder / "cat.txt").write_text("A cat.")
    (folder / "captions.csv").write_text("file_name,caption\ncat.png,named\n")
    assert captions(folder) == {"cat.png:2": "named"}


def test_shards_are_made_of_these_forms_too(folder, tmp_path):
    summary = writer.prepare(f"folder:{folder}", tmp_path / "out", 1)
    assert summary["pictures"] == 2 and summary["skipped"]["by_reason"] == {"no caption": 1}


def test_pictures_without_any_caption_are_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png")
    with pytest.raises(UserError, match=r"a text beside each picture \(cat\.txt beside cat\.png\), or put"):
        captions(tmp_path)
