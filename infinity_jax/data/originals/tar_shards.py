"""Tar shards as webdataset writes them: KEY.jpg beside KEY.txt or KEY.json, one after the other."""

import dataclasses
import glob
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infinity_jax.data.originals.rows import Row, Skipped, captions_of, scores_of, unread_columns
from infinity_jax.errors import UserError
from infinity_jax.files import pictures, reading

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
TEXTS = ("txt", "caption")
MOST_TEXT = 1 << 24


class _Member(tarfile.TarInfo):
    """A member whose damaged or missing header is an error; tarfile itself takes it for the end of the tar."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # pyright: ignore[reportAttributeAccessIssue]
            raise  # a block of zeros, the end
        except tarfile.EmptyHeaderError as error:  # pyright: ignore[reportAttributeAccessIssue]
            raise tarfile.ReadError("it stops without the zeros that end a tar, as if it were cut") from error
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


@dataclasses.dataclass(frozen=True)
class TarPart:
    """One shard."""

    file: Path

    def name(self) -> str:
        return f"{self.file} of {self.file.stat().st_size} bytes"

    def rows(self) -> Iterator[Row | Skipped]:
        key, members = None, {}
        try:
            # Whether it is compressed is seen from its first bytes.
            with tarfile.open(self.file, "r|*", tarinfo=_Member) as shard:
                for member in shard:
                    if not member.isfile():
                        continue
                    folder, _, name = member.name.rpartition("/")
                    stem, _, kind = name.partition(".")
                    if key is not None and key != f"{folder}/{stem}":
                        yield self._row(key, members)
                        members = {}
                    key = f"{folder}/{stem}"
                    members[kind.lower()] = self._content(shard, member, kind.lower())
        except (OSError, tarfile.TarError, EOFError) as error:
            yield Skipped(f"{self.file.name}:after {key or 'its start'}", "broken tar", str(error))
        if key is not None:
            yield self._row(key, members)

    def _content(self, shard: tarfile.TarFile, member: tarfile.TarInfo, kind: str) -> bytes:
        """Reads what is of use; b"" for other members, and for one that is far too large, as a sparse one may be."""
        most = pictures.MOST_BYTES if kind in PICTURES else MOST_TEXT if kind in (*TEXTS, "json") else 0
        content = shard.extractfile(member) if member.size <= most else None
        return content.read() if content is not None else b""

    def _row(self, key: str, members: dict[str, bytes]) -> Row | Skipped:
        name = f"{self.file.name}:{key.lstrip('/')}"
        picture = next((members[kind] for kind in PICTURES if kind in members), None)
        if picture is None:
            return Skipped(
                name, "no picture", f"it has {', '.join(members)}; wanted one of {', '.join(PICTURES)}"
            )
        fields: dict[str, Any] = {}
        try:
            if "json" in members:
                loaded = reading.parse_json(members["json"].decode("utf-8-sig"))
                fields = loaded if isinstance(loaded, dict) else {}
            texts = [members[kind].decode("utf-8-sig") for kind in TEXTS if kind in members]
        except ValueError as error:
            return Skipped(name, "not JSON" if "json" in members else "not UTF-8", str(error))
        captions = captions_of({**fields, "text": texts} if texts else fields)
        if not captions:
            return Skipped(
                name, "no caption", f"neither .txt nor .json has one; there are {', '.join(members)}"
            )
        return Row(name, picture, captions, scores_of(fields), tuple(sorted(unread_columns(fields))))


def find_parts(pattern: str) -> list[TarPart]:
    """Finds the shards that a pattern like "DIR/*.tar" names. UserError if there are none."""
    files = sorted(Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
    if not files:
        raise UserError(f"no file is named {pattern}; give tar:GLOB in quotes, like tar:'shards/*.tar'")
    return [TarPart(file) for file in files]
