"""Arguments of `infinity-jax sweep`."""

import argparse
from collections.abc import Callable

from infinity_jax.cli import options
from infinity_jax.errors import UserError

SUMMARY = "train a grid of models, one cell after the other, into one table of runs"
EXAMPLES = """infinity-jax sweep --config configs/sweeps/emoji.py --dry-run
  infinity-jax sweep --config configs/sweeps/emoji.py --workdir runs/sweep
  infinity-jax sweep --config configs/sweeps/emoji.py --workdir runs/sweep --cell 3
the same command again goes on; exit code 2 where a cell failed, 3 of --dry-run where one does not fit"""
DOES_NOT_FIT = 3


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds those of sweep."""
    metavar, text = "FILE[:ARGUMENT]", "a grid, like configs/sweeps/emoji.py"
    command.add_argument("--config", required=True, metavar=metavar, help=text)
    add_common(command)


def add_common(command: argparse.ArgumentParser) -> None:
    """Adds what sweep and ablate both have."""
    add = command.add_argument
    add("--workdir", metavar="DIR", help="gets runs.csv and a folder for each cell; resumed if it has any")
    add(
        "--dry-run",
        action="store_true",
        help="only say what each cell needs: parameters, tokens, FLOP, memory, time",
    )
    add(
        "--cell",
        type=options.whole_number,
        action="append",
        metavar="N",
        help="run only this cell, by the number that --dry-run shows; may be repeated",
    )
    options.add_processes(command)
    # Shown in the help only: argparse hands these on as unknown arguments, and config_files reads them.
    group = command.add_argument_group("changes to the config")
    group.add_argument("--config.KEY=VALUE", dest="_", metavar="", help="change one key; may be repeated")


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Plans or runs the sweep."""
    from infinity_jax.tools.scaling import sweep

    return plan_or_run(arguments, arguments.config, overrides, sweep.run)


def plan_or_run(arguments: argparse.Namespace, path: str, overrides: list[str], main: Callable) -> int:
    """Does what the arguments of `add_common` say with the grid of a config file; `main` runs it."""
    from infinity_jax.runtime import distributed
    from infinity_jax.tools.scaling import sweep

    if arguments.dry_run:
        config, estimates = sweep.plan(path, overrides)
        print(sweep.describe(config, estimates))
        return 0 if all(e.fits for e in estimates) else DOES_NOT_FIT
    if arguments.workdir is None:
        raise UserError("give --workdir DIR, where the runs go, or --dry-run to only see what they need")
    distributed.start(options.processes_of(arguments))
    main(path, overrides, arguments.workdir, arguments.cell)
    return 0
