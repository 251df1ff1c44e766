"""`infinity-jax` in a process that kills itself with half of its Nth picture on disk: N, then the words of the command.

Run by test_generate.
"""

import itertools
import os
import signal
import sys
from pathlib import Path

from infinity_jax.cli import main as cli


def main() -> None:
    last = int(sys.argv[1])
    write_bytes, numbers = Path.write_bytes, itertools.count(1)

    def write_or_die(path: Path, content: bytes) -> int:
        if ".png" not in path.name and ".jpg" not in path.name:
            return write_bytes(path, content)
        number = next(numbers)  # several threads write, and one of them must be the last
        if number == last:
            write_bytes(path, content[:50])
            os.kill(os.getpid(), signal.SIGKILL)
        return write_bytes(path, content)

    Path.write_bytes = write_or_die  # pyright: ignore[reportAttributeAccessIssue]
    sys.exit(cli.main(sys.argv[2:]))


if __name__ == "__main__":
    main()
