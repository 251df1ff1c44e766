"""Ways in which files are damaged: by disks, by copies that were cut short, by kills."""

import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path


def flip_bit(path: Path, draw: random.Random) -> str:
    """Flips one bit of a file and returns which, as "byte 12 bit 3"; the file must not be empty."""
    content = bytearray(path.read_bytes())
    byte, bit = draw.randrange(len(content)), draw.randrange(8)
    content[byte] ^= 1 << bit
    path.write_bytes(content)
    return f"byte {byte} bit {bit}"


def _rewritten(change: Callable[[bytes, random.Random], bytes]) -> Callable[[Path, random.Random], None]:
    def mutate(path: Path, draw: random.Random) -> None:
        path.write_bytes(change(path.read_bytes(), draw))

    return mutate


def _remove(path: Path, draw: random.Random) -> None:
    path.unlink()


def _folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _span(content: bytes, draw: random.Random) -> slice:
    start = draw.randrange(len(content) + 1)
    return slice(start, start + draw.randrange(1, 65))


def _zeroed(content: bytes, draw: random.Random) -> bytes:
    span = _span(content, draw)
    return content[: span.start] + bytes(len(content[span])) + content[span.stop :]


def _cut_out(content: bytes, draw: random.Random) -> bytes:
    span = _span(content, draw)
    return content[: span.start] + content[span.stop :]


# Name -> what it does to a file, whole and not empty before.
MUTATIONS: Mapping[str, Callable[[Path, random.Random], object]] = {
    "flipped": flip_bit,
    "truncated": _rewritten(lambda content, draw: content[: draw.randrange(len(content))]),
    "emptied": _rewritten(lambda content, draw: b""),
    "garbage": _rewritten(lambda content, draw: draw.randbytes(len(content))),
    "zeroed": _rewritten(_zeroed),
    "cut out": _rewritten(_cut_out),
    "longer": _rewritten(lambda content, draw: content + draw.randbytes(draw.randrange(1, 65))),
    "not utf-8": _rewritten(lambda content, draw: b"\xff\xfe" + content),
    "nested json": _rewritten(lambda content, draw: b"[" * 100_000),
    "other json": _rewritten(lambda content, draw: draw.choice([b"[]", b"{}", b"null", b"1e999", b'"x"'])),
    "removed": _remove,
    "a folder": _folder,
}


def files_of(folder: Path) -> list[Path]:
    """Lists the files of a folder and of those in it, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def copied(folder: Path, to: Path) -> Path:
    """Copies a folder over what is at `to`, to be damaged there."""
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(folder, to, symlinks=True))
