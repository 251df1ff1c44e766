"""JSON files that appear whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def write(file: Path, content: Any) -> None:
    """Writes `content` under a temporary name beside `file` and renames it; OSError if the disk refuses."""
    temporary = file.with_name(f".{file.name}.tmp")
    with open(temporary, "w") as stream:
        json.dump(content, stream, indent=1, ensure_ascii=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)
