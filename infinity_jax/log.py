"""Log lines of the command line: ours, and other packages' warnings."""

import logging as python_logging
from pathlib import Path

from absl import flags, logging

_PACKAGE = str(Path(__file__).parent)


def _wanted(record: python_logging.LogRecord) -> bool:
    if "/orbax/" in record.pathname:
        return False  # its failures reach us as exceptions, which checkpoint.py explains
    return record.pathname.startswith(_PACKAGE) or record.levelno >= python_logging.WARNING


def start() -> None:
    """Shows our information lines and everyone's warnings on stderr, each as its message alone."""
    flags.FLAGS.mark_as_parsed()  # absl warns about itself until its flags are read, which we do not use
    handler = logging.get_absl_handler()
    handler.addFilter(_wanted)
    handler.setFormatter(python_logging.Formatter("%(message)s"))
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold(logging.INFO)
