"""JSON files that appear whole or not at all."""

import json
import os
import uuid
from pathlib import Path
from typing import Any

from infinity_jax.errors import UserError


def write(file: Path, content: Any) -> None:
    """Writes `content` under a temporary name beside `file` and renames it; OSError if the disk refuses."""
    temporary = file.with_name(
        f".{file.name}.{uuid.uuid4().hex}.tmp"
    )  # another process may write the same file
    try:
        with open(temporary, "w") as stream:
            json.dump(content, stream, indent=1, ensure_ascii=False)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def check_target(file: Path, option: str) -> None:
    """Raises UserError, before any work is done, where `file` of the command line's `option` cannot be written."""
    if not file.absolute().parent.is_dir():
        raise UserError(f"{option} {file}: its folder does not exist; make it first")
    if file.is_dir():
        raise UserError(f"{option} {file} is a folder; name a file in it")
