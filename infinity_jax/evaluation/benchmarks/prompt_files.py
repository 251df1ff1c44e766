"""Reading of the prompt files that benchmarks come with; what is wrong in one is named with its file and line."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from infinity_jax.errors import UserError
from infinity_jax.files import reading
from infinity_jax.text.prompt import clean_prompts

_MOST_BYTES = 1 << 28
_REMEDY = "take the benchmark's own file again"
_BETWEEN = re.compile(r"[,\s]*")  # what stands between the entries of a list


def read_text(file: Path) -> str:
    """Reads the text of a UTF-8 file; UserError if it cannot be read."""
    try:
        return reading.read_bytes(file, _MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the prompts {file}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{file}, line {line}: not UTF-8 ({error.reason}); {_REMEDY}") from error


def read_json(file: Path, kind: type) -> Any:
    """Reads the JSON of a file, a `kind` (list or dict) that is not empty; UserError otherwise."""
    try:
        content = reading.parse_json(read_text(file))
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        raise UserError(f"{file}, line {line}: no valid JSON ({_said(error)}); {_REMEDY}") from error
    if not isinstance(content, kind):
        wanted = "list" if kind is list else "object"
        raise UserError(f"{file}, line 1: its JSON is no {wanted} but {_what(content)}; {_REMEDY}")
    if not content:
        raise UserError(f"{file}, line 1: it holds no prompts; {_REMEDY}")
    return content


def entries(file: Path) -> Iterator[tuple[str, Any]]:
    """Yields (where, the entry) of each entry of a JSON file that is one list; UserError as in `read_json`."""
    count = len(read_json(file, list))
    text, decoder = read_text(file), json.JSONDecoder()
    position, line = text.index("[") + 1, text.count("\n", 0, text.index("[")) + 1
    for number in range(1, count + 1):
        start = _BETWEEN.match(text, position).end()  # pyright: ignore[reportOptionalMemberAccess]
        line += text.count("\n", position, start)
        entry, position = decoder.raw_decode(text, start)
        yield f"{file}, line {line}, entry {number}", entry
        line += text.count("\n", start, position)


def json_lines(file: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields (where, the line, its object) of each line of a JSON-lines file; UserError for a line that is none."""
    # Not splitlines: U+2028 and the like may stand in a string of JSON.
    for number, line in enumerate(read_text(file).rstrip("\n").split("\n"), 1):
        where = f"{file}, line {number}"
        try:
            content = reading.parse_json(line)
        except ValueError as error:
            raise UserError(f"{where}: no valid JSON ({_said(error)}); {_REMEDY}") from error
        if not isinstance(content, dict):
            raise UserError(f"{where}: no object but {_what(content)}; {_REMEDY}")
        yield where, line, content


def _said(error: ValueError) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def prompt_of(entry: Any, key: str, where: str) -> str:
    """Returns the prompt under `key` of an object, with its white space made plain; UserError if there is none."""
    return plain(value_of(entry, key, where), where)


def plain(text: Any, where: str) -> str:
    """Makes the white space of a prompt plain; UserError, naming `where`, if it is empty or no text."""
    if not isinstance(text, str):
        raise UserError(f"{where}: no text but {_what(text)}; {_REMEDY}")
    try:
        return clean_prompts([text])[0]
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def value_of(entry: Any, key: str, where: str) -> Any:
    """Returns what an object has under `key`; UserError if it is no object or has none."""
    if not isinstance(entry, dict):
        raise UserError(f"{where}: no object but {_what(entry)}; {_REMEDY}")
    if key not in entry:
        raise UserError(f"{where}: it has no {key!r} (it has: {', '.join(entry) or 'nothing'}); {_REMEDY}")
    return entry[key]


def file_name(name: Any, where: str) -> str:
    """Returns `name`, which becomes a part of a path; UserError if it would lead elsewhere."""
    if isinstance(name, str) and re.fullmatch(r"[\w][\w.-]*", name):
        return name
    raise UserError(f"{where}: {_what(name)} cannot name a picture; {_REMEDY}")


def different(names: Iterable[str], where: str) -> None:
    """Raises UserError for a name that comes twice: one picture would be written over the other."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{where}: {name!r} comes twice; {_REMEDY}")
        seen.add(name)


def sha256(files: Iterable[Path]) -> str:
    """Hashes the names and contents of files, in their order, in hexadecimal."""
    digest = hashlib.sha256()
    for file in files:
        with open(file, "rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name} {content}\n".encode())
    return digest.hexdigest()


def _what(content: Any) -> str:
    text = json.dumps(content, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}..."
