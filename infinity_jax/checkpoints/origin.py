"""Where weights come from: the commit and the command of the run that trains them, and all data behind them."""

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

# An absolute path, or one from the home or the parent folder, alone or after "=", ":" or ","; no "//" of an address.
_PATH = re.compile(r"(?:(?<=[=:,])|^)(?:~[^/=:,@]*|\.{1,2})?/(?!/)[^=:,@]*")


def describe(earlier_data: Sequence[str]) -> dict[str, Any]:
    """Tells {"commit", "command", "earlier_data"} of this process; the commit is "unknown" outside a git checkout.

    Args:
      earlier_data: what the weights that it starts from were trained on, see `data_of`.
    """
    command = shlex.join(["infinity-jax", *sys.argv[1:]])
    return {"commit": commit(), "command": command, "earlier_data": list(earlier_data)}


def data_of(noted: Mapping[str, Any]) -> list[str]:
    """Names the data that weights were trained on, from the first run to the last, by what is noted of the last one.

    Whoever shares the weights owes all of it its attribution.
    """
    earlier = noted.get("origin", {}).get("earlier_data", [])
    own = noted.get("data", {}).get("source")
    return list(dict.fromkeys([*earlier, *([own] if own else [])]))


def package() -> str:
    """Names this package with its version, "unknown" in a checkout that is not installed."""
    name = "infinity-jax"
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return f"{name} unknown"


def commit() -> str:
    """Names the git commit of this package, with a note if files were changed since; "unknown" outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", ".")
        return git("rev-parse", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def without_paths(value: Any) -> Any:
    """Copies what is noted of a run, of paths the last name alone: where things lie on a disk is its owner's affair.

    Args:
      value: as JSON has it. Under the key "command" stands a line of a shell, each word of which may have a path.
    """
    if isinstance(value, dict):
        return {
            key: _command(text) if key == "command" and isinstance(text, str) else without_paths(text)
            for key, text in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_paths(one) for one in value]
    return _PATH.sub(lambda path: Path(path[0]).name, value) if isinstance(value, str) else value


def _command(line: str) -> str:
    try:
        return shlex.join(map(without_paths, shlex.split(line)))
    except ValueError:  # no whole line
        return without_paths(line)
