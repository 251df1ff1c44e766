"""Made-up pictures of mixed sizes and ratios, and files broken in twenty ways."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = [
    "red",
    "green",
    "blue",
    "round",
    "flat",
    "tall",
    "old",
    "new",
    "shiny",
    "soft",
    "house",
    "tree",
    "boat",
    "bird",
    "stone",
    "cloud",
    "river",
    "lamp",
]


def caption(number: int) -> str:
    """A caption of its own for each number."""
    draw = np.random.default_rng(number)
    return f"picture {number}, a {' '.join(draw.choice(WORDS, 4))}"


def jpeg(number: int, side: int = 96, format: str = "JPEG", **options) -> bytes:
    """A smooth picture of a size and ratio that `number` decides, from 1:3 to 3:1, about `side`^2 pixels."""
    draw = np.random.default_rng(number)
    ratio = np.exp(draw.uniform(-1.1, 1.1))
    scale = side * draw.uniform(0.7, 1.5)
    height, width = (max(2, round(x)) for x in (scale * ratio**0.5, scale / ratio**0.5))
    coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), np.uint8))
    out = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(out, format, **options)
    return out.getvalue()


def _cut(share: float, format: str = "JPEG") -> Callable[[int], bytes]:
    def cut(number: int) -> bytes:
        whole = jpeg(number, format=format)
        return whole[: int(len(whole) * share)]

    return cut


def _zeroed(begin: float, end: float, format: str = "JPEG") -> Callable[[int], bytes]:
    def zeroed(number: int) -> bytes:
        whole = bytearray(jpeg(number, format=format))
        a, b = int(len(whole) * begin), int(len(whole) * end)
        whole[a:b] = bytes(b - a)
        return bytes(whole)

    return zeroed


def _png(number: int, **header) -> bytes:
    """A PNG whose header says something else than its data."""
    whole = bytearray(jpeg(number, format="PNG"))
    width, height = struct.unpack(">II", whole[16:24])
    whole[16:24] = struct.pack(">II", header.get("width", width), header.get("height", height))
    whole[24] = header.get("depth", whole[24])
    if header.get("checksum", True):
        whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
    return bytes(whole)


# Kind of breakage -> the bytes of a file with a number. Two more kinds have no bytes: a missing file, and no caption.
BROKEN: dict[str, Callable[[int], bytes]] = {
    "empty": lambda n: b"",
    "one byte": lambda n: b"\xff",
    "text": lambda n: b"this is not a picture " * 40,
    "web page": lambda n: b"<!DOCTYPE html><html><body>404 not found</body></html>",
    "json": lambda n: b'{"error": "quota exceeded"}',
    "zeros": lambda n: bytes(2000),
    "noise": lambda n: np.random.default_rng(n).bytes(2000),
    "jpeg of its first marker": lambda n: jpeg(n)[:2],
    "jpeg cut in its header": _cut(0.1),
    "jpeg cut at a half": _cut(0.5),
    "jpeg cut at nine tenths": _cut(0.9),
    "jpeg without its first bytes": lambda n: jpeg(n)[20:],
    "jpeg without tables": _zeroed(0.02, 0.4),
    "png cut at a half": _cut(0.5, "PNG"),
    "png with zeroed data": _zeroed(0.4, 0.7, "PNG"),
    "png with a wrong checksum": lambda n: _png(n, width=7, checksum=False),
    "png of too many pixels": lambda n: _png(n, width=60000, height=60000),
    "png of no pixels": lambda n: _png(n, width=0),
    "webp cut at a half": _cut(0.5, "WEBP"),
    "gif cut in its header": lambda n: jpeg(n, format="GIF")[:30],
}

# What `prepare` calls some of them, where no other name would do.
REASONS = {
    "empty": "empty file",
    "missing": "no such file",
    "no caption": "no caption",
    "web page": "no known picture format",
    "jpeg cut at a half": "truncated picture",
    "png cut at a half": "truncated picture",
    "png with zeroed data": "broken picture",
    "webp cut at a half": "broken picture",
    "png of too many pixels": "too many pixels",
}


def write_release(folder: Path, count: int, side: int = 96) -> tuple[set[str], dict[str, str]]:
    """The release's splits with `count` pictures, every 33rd broken or missing in one of the kinds.

    Returns:
      the file names of the good ones, and the kind of breakage of each bad one.
    """
    (folder / "images").mkdir(parents=True)
    (folder / "splits").mkdir()
    kinds = [*BROKEN, "missing", "no caption"]
    good, bad, lines = set(), {}, {}
    for number in range(count):
        name = f"{number:06d}.jpg"
        kind = kinds[number // 33 % len(kinds)] if number % 33 == 32 else None
        content = BROKEN[kind](number) if kind in BROKEN else jpeg(number, side, quality=90)
        if kind != "missing":
            (folder / "images" / name).write_bytes(content)
        if kind is None:
            good.add(name)
        else:
            bad[name] = kind
        text = "" if kind == "no caption" else caption(number)
        row = {
            "image_path": f"images/{name}",
            "h_div_w": 1.0,
            "long_caption": f"{text}. It was made by a program. Nobody drew it." if text else "",
            "long_caption_type": "made",
            "text": text,
            "short_caption_type": "made",
            "aesthetic": number % 10,
        }
        lines.setdefault(number % 3, []).append(json.dumps(row))
    for split, rows in lines.items():
        (folder / "splits" / f"{split + 1}.000_{len(rows):09d}.jsonl").write_text("\n".join(rows) + "\n")
    return good, bad


def flat(number: int, height: int, width: int, format: str = "PNG") -> bytes:
    """A smooth picture of a given size."""
    out = io.BytesIO()
    coarse = Image.fromarray(np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8))
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(out, format)
    return out.getvalue()
