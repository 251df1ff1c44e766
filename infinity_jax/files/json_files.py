"""JSON files that a command wrote before, or a user."""

import json
from pathlib import Path
from typing import Any

from infinity_jax.errors import UserError


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Args:
      remedy: what to do where it is damaged, for the message.
    Raises:
      UserError: it is missing, cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        words = " ".join(str(error).split())
        raise UserError(f"{path} is damaged, it is not readable JSON ({words[:200]}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged, it holds a {type(content).__name__} and no object; {remedy}")
    return content
