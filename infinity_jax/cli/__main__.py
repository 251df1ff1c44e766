"""Runs the command line: `infinity-jax COMMAND` is `python -m infinity_jax.cli COMMAND`."""

import sys
from typing import NoReturn

from infinity_jax.runtime import stop_signals


def run() -> NoReturn:
    """Runs one command as this whole process."""
    stop_signals.end_at_once()  # while modules are imported
    from infinity_jax.cli.main import main

    try:
        code = main()
        if stop_signals.ending() is not None:
            stop_signals.leave(code)
        sys.exit(code)
    finally:
        stop_signals.end_at_once()  # while the interpreter ends


if __name__ == "__main__":
    run()
