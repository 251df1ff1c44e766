"""Files of others: only regular ones are opened, and no more is read than there may be."""

import io
import json
import os
import stat
from pathlib import Path
from typing import Any

from infinity_jax.errors import UserError

# Of configs, indices, metadata and vocabularies; the largest known, a tokenizer.json of 250,000 words, has 17 MB.
MOST_JSON = 1 << 26


def opened(path: Path) -> io.BufferedReader:
    """Opens a file for reading.

    Raises:
      UserError: it is no regular file but a pipe or device, which would hang or never end.
      OSError: it cannot be opened.
    """
    # A pipe without a writer would wait in open() for one.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode):
        file.close()
        raise UserError(f"{path} is a {_kind(mode)}, not a file; give a file")
    return file


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


def read_bytes(path: Path, most: int) -> bytes:
    """Reads a whole file; UserError if it is no regular one or has more than `most` bytes, OSError as `open`."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        # Python reserves all that is asked for; files of /proc have no size.
        content = file.read(min(most, max(size, 1 << 16)) + 1)
        if len(content) > most:
            raise UserError(
                f"{path} has {max(size, len(content))} bytes, more than {most}; give the right file"
            )
        return content


def read_json(path: Path) -> Any:
    """Reads a JSON file of at most `MOST_JSON` bytes. Raises as `read_bytes`, and ValueError where it is no JSON."""
    return parse_json(read_bytes(path, MOST_JSON))


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Args:
      remedy: what to do where it is damaged, for the message.
    Raises:
      UserError: it is missing, cannot be read, or holds something else.
    """
    try:
        content = read_json(path)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); {remedy}") from error
    except ValueError as error:
        words = " ".join(str(error).split())
        raise UserError(f"{path} is damaged, it is not readable JSON ({words[:200]}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged, it holds a {type(content).__name__} and no object; {remedy}")
    return content


def parse_json(text: bytes | str) -> Any:
    """Parses JSON; whatever is wrong with it, nesting without end included, is a ValueError."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
