"""Pictures: the one reader of anybody's, and a writer that puts in metadata of how they were made."""

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from infinity_jax.errors import UserError, shortened
from infinity_jax.files import atomic, reading

# Pillow knows others, some of which start programs (Ghostscript for EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MOST_BYTES = 1 << 28
# A picture that is decoded with transparency takes 9 bytes a pixel, WebP 20: at most 0.7 GB. A JPEG may have twice as
# many, as its decoder can halve it.
MOST_PIXELS, _MOST_OF_WEBP = 1 << 26, 1 << 25

# The key of the metadata in a PNG, and the first word of a JPEG's comment.
_KEY = "infinity-jax"
# What a whole file ends with. Of a PNG the last chunk, without data: its length, name and checksum.
_END = {"PNG": b"\0\0\0\0IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
JPEG_QUALITY = 95


class BrokenPicture(UserError):
    """Bytes that are no whole picture, or a file that is not read.

    Attributes:
      kind: "empty file", "no known picture format", "truncated picture", "too many pixels", "broken picture" or "no
        usable file".
      detail: what the decoder says.
    """

    def __init__(self, size: int, error: Exception, kind: str = ""):
        self.detail = shortened(str(error) or type(error).__name__, 300, quoted=False)
        if kind:
            self.kind = kind
        elif not size:
            self.kind, self.detail = "empty file", "it has no bytes"
        elif isinstance(error, UnidentifiedImageError):
            self.kind, self.detail = "no known picture format", "no known picture format"
        elif isinstance(error, Image.DecompressionBombError):
            self.kind = "too many pixels"
        else:
            self.kind = "truncated picture" if "truncated" in self.detail.lower() else "broken picture"
        super().__init__(
            f"cannot decode a picture of {size} bytes: {self.detail}; give a whole PNG, JPEG or WebP"
        )


def read(path: Path) -> bytes:
    """Reads the encoded bytes of a picture.

    Raises:
      OSError: as `open`.
      BrokenPicture: it is no regular file (a pipe, a device) or has more than `MOST_BYTES`.
    """
    try:
        return reading.read_bytes(path, MOST_BYTES)
    except UserError as error:
        raise BrokenPicture(0, error, "no usable file") from error


@contextlib.contextmanager
def opened(content: bytes) -> Iterator[Image.Image]:
    """Yields a picture of which only the header has been read; call `load` for its pixels.

    Raises:
      BrokenPicture: for whatever goes wrong until the end of the block.
    """
    try:
        _check_pixels(_pixels_of_webp(content), _MOST_OF_WEBP)  # Pillow allocates them while it opens one
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            _check_pixels(
                picture.width * picture.height, MOST_PIXELS * (1 + (picture.format in ("JPEG", "MPO")))
            )
            yield picture
    except Exception as error:  # Pillow's decoders raise many types on damaged files, not only OSError
        raise BrokenPicture(len(content), error) from error


def load(picture: Image.Image) -> None:
    """Decodes the pixels of an opened picture, its first frame; DecompressionBombError if it has too many."""
    _check_pixels(picture.width * picture.height, MOST_PIXELS)
    picture.load()


def read_rgb(path: Path) -> Image.Image:
    """Reads a picture that was written here, as mode RGB. Raises OSError or BrokenPicture."""
    with opened(read(path)) as picture:
        load(picture)
        return picture.convert("RGB")


def _check_pixels(pixels: int, most: int) -> None:
    if pixels > most:
        raise Image.DecompressionBombError(f"it has {pixels} pixels, more than {most}")


def _pixels_of_webp(content: bytes) -> int:
    """Reads how many pixels a WebP says to have in its first chunk; 0 for other files."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        return 0

    def number(at: int, count: int) -> int:
        return int.from_bytes(content[at : at + count], "little")

    match content[12:16]:
        case b"VP8X":
            return (number(24, 3) + 1) * (number(27, 3) + 1)
        case b"VP8L":
            return ((number(21, 4) & 0x3FFF) + 1) * ((number(21, 4) >> 14 & 0x3FFF) + 1)
    return (number(26, 2) & 0x3FFF) * (number(28, 2) & 0x3FFF)


def write(image: Image.Image, path: Path, metadata: Mapping[str, Any]) -> None:
    """Writes a picture in the format of its name, .png or .jpg (quality 95), as `write_png` does."""
    if path.suffix == ".png":
        write_png(image, path, metadata)
        return
    comment = f"{_KEY} {json.dumps(metadata)}"
    _write(image, path, format="JPEG", quality=JPEG_QUALITY, comment=comment)


def write_png(
    image: Image.Image, path: Path, metadata: Mapping[str, Any] | None = None, smallest: bool = False
) -> None:
    """Writes a PNG that appears whole or not at all: a full disk or a stop never leaves half a picture.

    Args:
      metadata: values of JSON that go into the file as text, for `read_metadata`.
      smallest: takes longer to make a smaller file.
    Raises:
      OSError: the file cannot be written.
    """
    text = PngImagePlugin.PngInfo()
    if metadata is not None:
        text.add_text(_KEY, json.dumps(metadata))
    _write(image, path, format="PNG", optimize=smallest, pnginfo=text)


def write_animation(images: Sequence[Image.Image], milliseconds: Sequence[int], path: Path) -> None:
    """Writes an endless animated WebP, without loss, whole or not at all; each picture is shown for so long."""
    options = {"save_all": True, "append_images": images[1:], "duration": list(milliseconds), "loop": 0}
    _write(images[0], path, format="WEBP", lossless=True, **options)


def _write(image: Image.Image, path: Path, **options: Any) -> None:
    """Writes a picture with Pillow's options, whole or not at all."""
    # In memory first: where a file takes only a part of what is written, as on a full disk, Pillow does not notice.
    content = io.BytesIO()
    image.save(content, **options)
    atomic.write_bytes(path, content.getvalue())


def read_metadata(path: Path) -> dict[str, Any] | None:
    """Reads the metadata of a picture that was written here; None where there is no such file, or half of one."""
    try:
        with reading.opened(path) as file, Image.open(file, formats=tuple(_END)) as image:
            text = image.info[_KEY] if image.format == "PNG" else image.info["comment"].decode()
            metadata = reading.parse_json(text.removeprefix(_KEY))
            end = _END[image.format or ""]
            file.seek(-len(end), os.SEEK_END)
            is_whole = file.read() == end
    except (OSError, KeyError, ValueError, SyntaxError, Image.DecompressionBombError):  # UserError too
        return None
    return metadata if is_whole and isinstance(metadata, dict) else None
