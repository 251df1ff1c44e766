"""Pictures on disk, each with metadata of how it was made."""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from infinity_jax.files import atomic

# The key of the metadata in a PNG, and the first word of a JPEG's comment.
_KEY = "infinity-jax"
# What a whole file ends with. Of a PNG the last chunk, without data: its length, name and checksum.
_END = {"PNG": b"\0\0\0\0IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
JPEG_QUALITY = 95


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


def _write(image: Image.Image, path: Path, **options: Any) -> None:
    """Writes a picture with Pillow's options, whole or not at all."""
    # In memory first: where a file takes only a part of what is written, as on a full disk, Pillow does not notice.
    content = io.BytesIO()
    image.save(content, **options)
    atomic.write_bytes(path, content.getvalue())


def read_metadata(path: Path) -> dict[str, Any] | None:
    """Reads the metadata of a picture that was written here; None where there is no such file, or half of one."""
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            text = image.info[_KEY] if image.format == "PNG" else image.info["comment"].decode()
            metadata = json.loads(text.removeprefix(_KEY))
            end = _END[image.format or ""]
            file.seek(-len(end), os.SEEK_END)
            is_whole = file.read() == end
    except (OSError, KeyError, ValueError, SyntaxError):
        return None
    return metadata if is_whole and isinstance(metadata, dict) else None
