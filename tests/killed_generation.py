"""`infinity-jax` in a process that kills itself with half of its Nth picture on disk: N, then the words of the command.

Run by test_generate.
"""

import itertools
import os
import signal
import sys
from pathlib import Path

from PIL import Image

from infinity_jax.cli import main as cli


def main() -> None:
    last = int(sys.argv[1])
    save, numbers = Image.Image.save, itertools.count(1)

    def save_or_die(image: Image.Image, path: Path, **options) -> None:
        number = next(numbers)  # several threads write, and one of them must be the last
        save(image, path, **options)
        if number == last:
            path.write_bytes(path.read_bytes()[:50])
            os.kill(os.getpid(), signal.SIGKILL)

    Image.Image.save = save_or_die  # pyright: ignore[reportAttributeAccessIssue]
    sys.exit(cli.main(sys.argv[2:]))


if __name__ == "__main__":
    main()
