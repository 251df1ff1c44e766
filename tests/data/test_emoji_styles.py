"""Emoji in six styles, from packages made up here: names, what is held out, and the prepared set."""

import base64
import dataclasses
import hashlib
import io
import json
import tarfile
from collections import Counter

import pytest
from PIL import Image

from infinity_jax.data import emoji_styles, pictures
from infinity_jax.data.emoji_styles import Drawing, all_drawings, code_of, names_by_code, splits_of
from infinity_jax.data.records import SPLITS
from infinity_jax.data.sources import attribution, open_source
from infinity_jax.errors import UserError
from infinity_jax.files.npm import NpmPackage

KEYS = {"1f3f0": "castle", "1f680": "rocket", "2764-fe0f": "red-heart", "1f44b-1f3fd": "waving-hand-medium"}
OF_ICONS = ("NOTO", "TWEMOJI", "FLAT", "GRADIENT")


def packed(path, files: dict[str, bytes]) -> str:
    """Writes a package; returns its hash."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """The folder of packages under the data folder, with made-up ones, which are pinned instead of the real ones."""
    monkeypatch.setenv("INFINITY_DATA", str(tmp_path))
    folder = tmp_path / "npm"
    folder.mkdir()

    def pin(name: str, files: dict[str, bytes]) -> None:
        package: NpmPackage = getattr(emoji_styles, name)
        sha512 = packed(folder / package.file, files)
        monkeypatch.setattr(emoji_styles, name, dataclasses.replace(package, sha512=sha512))

    for number, name in enumerate(OF_ICONS):
        body = f'<circle cx="8" cy="8" r="6" fill="#{2 * number}00"/>'
        icons = {key: {"body": body} for key in KEYS.values() if (name, key) != ("TWEMOJI", "rocket")}
        listed = {} if name == "GRADIENT" else KEYS
        pin(
            name,
            {
                "icons.json": json.dumps({"icons": icons, "width": 16, "height": 16}).encode(),
                "chars.json": json.dumps(listed).encode(),
            },
        )
    solid = io.BytesIO()
    Image.new("RGBA", (64, 64), (0, 0, 255, 0)).save(solid, "WEBP")
    pin("SOLID", {f"assets/{code}.webp": solid.getvalue() for code in (*KEYS, "1f9ff", "0023-fe0f-20e3")})
    return folder


def test_names_are_those_of_the_emoji_whatever_the_set_calls_them():
    names = names_by_code()
    assert names[code_of("\u2764\ufe0f")] == names[code_of("\u2764")] == "red heart"
    assert names[code_of("\U0001f469\u200d\U0001f680")] == "woman astronaut"


def test_each_emoji_has_its_styles_and_no_skin_tones(packages):
    drawings = all_drawings(packages)
    castle = {drawing.style: drawing for drawing in drawings if drawing.code == "1f3f0"}
    assert set(castle) == {"outlined", "flat", "gradient", "3D", "Noto", "Twemoji"}
    assert castle["3D"].caption == "castle, 3D style"
    assert {d.style for d in drawings if d.code == "1f680"} == set(castle) - {"Twemoji"}
    assert not any("skin tone" in drawing.caption for drawing in drawings)
    assert "keycap #, 3D style" in {drawing.caption for drawing in drawings}
    for drawing in castle.values():
        image = pictures.decode(drawing.draw(), 128, 128)
        assert (image[0, 0] == 255).all()
    # A see-through picture is white, a drawn one has its colour in the middle.
    assert (pictures.decode(castle["3D"].draw(), 128, 128) == 255).all()
    assert list(pictures.decode(castle["flat"].draw(), 128, 128)[64, 64]) == [68, 0, 0]


def made_up(codes: int) -> list[Drawing]:
    styles = ("outlined", "flat", "gradient", "3D", "Noto", "Twemoji")
    return [Drawing(str(code), style, f"{code}, {style}", bytes) for code in range(codes) for style in styles]


def test_a_tenth_of_the_pairs_is_held_out_and_their_emoji_are_seen_in_other_styles():
    drawings = made_up(1000)
    splits = splits_of(drawings)
    assert splits == splits_of(drawings)
    counts = Counter(splits)
    assert (
        abs(counts["compositions"] / 6000 - 0.1) < 0.015 and abs(counts["validation"] / 6000 - 0.027) < 0.01
    )
    trained = {drawing.code for drawing, split in zip(drawings, splits, strict=True) if split == "train"}
    held_out = {
        drawing.code for drawing, split in zip(drawings, splits, strict=True) if split == "compositions"
    }
    assert held_out <= trained
    assert "compositions" not in splits_of(
        [drawing for drawing in drawings if drawing.style in ("flat", "3D")]
    )


def test_the_set_is_prepared_once_and_read_like_any_other(packages, monkeypatch):
    monkeypatch.setattr(emoji_styles, "named_pictures", list)
    monkeypatch.setattr(
        emoji_styles, "splits_of", lambda drawings: [SPLITS[i % 3] for i in range(len(drawings))]
    )
    train = open_source("emoji_styles", "train", packages.parent)
    record = train[0]
    assert record["caption"].endswith(" style") and "/" in record["id"]
    assert pictures.decode(record["image"], 128, 128).shape == (128, 128, 3)
    (packages / emoji_styles.NOTO.file).unlink()  # no longer needed
    assert len(open_source("emoji_styles", "train", packages.parent)) == len(train)
    splits = [open_source("emoji_styles", split, packages.parent) for split in ("validation", "compositions")]
    assert len(train) + sum(map(len, splits)) == 4 * 3 + 3 + 2 - 1
    assert "Twemoji (CC BY 4.0)" in attribution(["emoji_styles"])


def test_a_damaged_package_is_named(packages):
    (packages / emoji_styles.FLAT.file).write_bytes(b"cut")
    with pytest.raises(UserError, match=r"fluent-emoji-flat 1\.2\.6: its SHA-512 is .*remove it"):
        all_drawings(packages)
