"""Runs the command line: `python -m infinity_jax.cli COMMAND` is `infinity-jax COMMAND`."""

import sys

from infinity_jax.cli.main import main

sys.exit(main())
