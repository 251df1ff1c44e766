"""Where weights come from: the commit and the command of the run that trains them."""

import shlex
import subprocess
import sys
from pathlib import Path


def describe() -> dict[str, str]:
    """Tells {"commit", "command"} of this process; the commit is "unknown" outside a git checkout."""
    return {"commit": _commit(), "command": shlex.join(["infinity-jax", *sys.argv[1:]])}


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", ".")
        return git("rev-parse", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
