"""The reader of pictures: formats by a list, limits before anything is decoded, and files that are none."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from helpers import paths
from PIL import Image

from infinity_jax.data import pictures as data_pictures
from infinity_jax.data.folder import check_pictures
from infinity_jax.files import pictures
from infinity_jax.files.pictures import BrokenPicture

EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(attacked) (w) file closefile\n%%EOF\n"
)


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(width, height, *chunks):
    def chunk(name, content):
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*c) for c in ((b"IHDR", head), *chunks, (b"IDAT", rows), (b"IEND", b""))
    )


def refusal(content) -> BrokenPicture:
    for read in (data_pictures.decode_rgb, data_pictures.check):
        with pytest.raises(BrokenPicture) as error:
            read(content)
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return error.value


def test_formats_that_start_programs_or_are_not_listed_are_none(monkeypatch):
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("a program was started"))
    small = Image.new("RGB", (8, 8))
    for content in (EPS, encoded(small, "EPS"), encoded(small, "ICO"), encoded(small, "PPM"), b"<svg/>"):
        assert refusal(content).kind == "no known picture format"


@pytest.mark.parametrize(
    "content",
    [
        png(8193, 8192),
        png((1 << 31) - 1, (1 << 31) - 1),
        encoded(Image.new("1", (9000, 9000)), "PNG"),
        encoded(Image.new("P", (9000, 9000)), "GIF"),
        encoded(Image.new("1", (9000, 9000)), "TIFF", compression="group4"),
        encoded(Image.new("L", (16000, 16000)), "JPEG"),
        b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0" + b"\xff\x3f\0" * 2,
        b"RIFF\0\0\0\0WEBPVP8L\x0a\0\0\0\x2f\xff\xff\xff\x0f",
        b"RIFF\0\0\0\0WEBPVP8 \x0a\0\0\0\0\0\0\x9d\x01\x2a\xff\x3f\xff\x3f",
    ],
    ids=["PNG", "largest PNG", "1 bit", "GIF", "fax", "JPEG", "WebP X", "WebP L", "WebP"],
)
def test_too_many_pixels_are_refused_before_they_are_decoded(content, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    assert refusal(content).kind == "too many pixels"


def test_a_large_jpeg_is_halved_where_that_is_enough(monkeypatch):
    monkeypatch.setattr(pictures, "MOST_PIXELS", 100 * 100)
    content = encoded(Image.new("RGB", (140, 140), "red"), "JPEG")
    assert data_pictures.check(content) == (140, 140)
    monkeypatch.setattr(data_pictures, "HUGE", 1000)
    assert data_pictures.decode_rgb(content, at_least=60).size == (70, 70)
    with pytest.raises(BrokenPicture, match="it has 19600 pixels, more than 10000"):
        data_pictures.decode_rgb(content)
    with pytest.raises(BrokenPicture):
        data_pictures.check(encoded(Image.new("RGB", (150, 150), "red"), "JPEG"))


def test_large_pictures_are_converted_by_rows_to_the_same_pixels(monkeypatch):
    numbers = np.random.default_rng(0)
    colours = numbers.integers(0, 256, (37, 23, 4), np.uint8)
    palette = Image.fromarray(colours[..., :3]).quantize(16)
    kinds = [
        encoded(Image.fromarray(colours), "PNG"),
        encoded(Image.fromarray(colours[..., 0]), "PNG"),
        encoded(Image.fromarray(numbers.integers(0, 65536, (37, 23)).astype(np.uint16)), "PNG"),
        encoded(palette, "PNG", transparency=3),
        encoded(Image.fromarray(colours), "WEBP", lossless=True),
    ]
    whole = [np.asarray(data_pictures.decode_rgb(kind)) for kind in kinds]
    monkeypatch.setattr(data_pictures, "HUGE", 100)
    for kind, pixels in zip(kinds, whole, strict=True):
        np.testing.assert_array_equal(np.asarray(data_pictures.decode_rgb(kind)), pixels)


def test_chunks_of_text_are_bounded():
    bomb = zlib.compress(b"\0" * (80 << 20))
    refusal(png(8, 8, (b"zTXt", b"a\0\0" + bomb)))
    refusal(png(8, 8, *((b"tEXt", b"a\0" + b"b" * (1 << 20)),) * 70))


def test_only_the_first_frame_is_decoded():
    frames = [Image.new("P", (8, 8), number % 256) for number in range(500)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pictures.opened(content) as picture:
        pictures.load(picture)
        assert picture.tell() == 0 and picture.size == (8, 8)


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(pictures.MOST_BYTES + 1)
    for name, words in (("pipe", "is a pipe"), ("zero", "is a device"), ("huge", "more than 268435456")):
        with pytest.raises(BrokenPicture, match=words) as error:
            pictures.read(tmp_path / f"{name}.png")
        assert error.value.kind == "no usable file"
        assert words in check_pictures(tmp_path, [f"{name}.png"], tmp_path)[f"{name}.png"]
    with pytest.raises(FileNotFoundError):
        pictures.read(tmp_path / "missing.png")


def test_metadata_of_hostile_files(tmp_path):
    deep = png(8, 8, (b"tEXt", b"infinity-jax\0" + b"[" * 100_000))
    for content in (deep, EPS, png(1 << 30, 1 << 30), b""):
        (tmp_path / "a.png").write_bytes(content)
        assert pictures.read_metadata(tmp_path / "a.png") is None


def test_the_largest_picture_takes_less_than_a_gigabyte(tmp_path):
    side = int(pictures.MOST_PIXELS**0.5)
    code = (
        "import sys, resource; from infinity_jax.data import pictures\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "pictures.decode_rgb(open(sys.argv[1], 'rb').read())\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)\n"
    )
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGBA", (side, side)), "PNG", compress_level=1))
    command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    environment = {**os.environ, "PYTHONPATH": paths.PYTHONPATH}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 1000
