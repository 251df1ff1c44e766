"""Pictures on disk, each with a note of how it was made."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

_NOTE = "infinity-jax"
# What a whole file ends with. Of a PNG the last chunk, without data: its length, name and checksum.
_END = {"PNG": b"\0\0\0\0IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
JPEG_QUALITY = 95


def write(image: Image.Image, path: Path, note: Mapping[str, Any]) -> None:
    """Writes a picture in the format of its name, .png or .jpg (quality 95), as `write_png` does."""
    if path.suffix == ".png":
        write_png(image, path, note)
        return
    comment = f"{_NOTE} {json.dumps(note)}"
    _whole(path, lambda file: image.save(file, format="JPEG", quality=JPEG_QUALITY, comment=comment))


def write_png(
    image: Image.Image, path: Path, note: Mapping[str, Any] | None = None, smallest: bool = False
) -> None:
    """Writes a PNG that appears whole or not at all: a full disk or a stop never leaves half a picture.

    Args:
      note: values of JSON that go into the file as text, for `read_note`.
      smallest: takes longer to make a smaller file.
    Raises:
      OSError: the file cannot be written.
    """
    text = PngImagePlugin.PngInfo()
    if note is not None:
        text.add_text(_NOTE, json.dumps(note))
    _whole(path, lambda file: image.save(file, format="PNG", optimize=smallest, pnginfo=text))


def _whole(path: Path, save: Callable[[Path], None]) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        save(unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # of a full disk, which is found while writing
            error.filename = str(path)
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def remove_unfinished(paths: Iterable[Path]) -> None:
    """Removes what killed processes left of these pictures; no other process may be writing one of them."""
    names_in: dict[Path, set[str]] = {}
    for path in paths:
        names_in.setdefault(path.parent, set()).add(path.name)
    for folder, names in names_in.items():
        for file in folder.glob(".*.unfinished"):
            if file.name[1:].rsplit(".", 2)[0] in names:
                file.unlink(missing_ok=True)


def read_note(path: Path) -> dict[str, Any] | None:
    """The note of a picture that was written here; None where there is no such file, or half of one."""
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            text = image.info[_NOTE] if image.format == "PNG" else image.info["comment"].decode()
            note = json.loads(text.removeprefix(_NOTE))
            end = _END[image.format or ""]
            file.seek(-len(end), os.SEEK_END)
            whole = file.read() == end
    except (OSError, KeyError, ValueError, SyntaxError):
        return None
    return note if whole and isinstance(note, dict) else None
