"""`infinity-jax sweep` and `ablate`: a grid of runs, planned or trained."""

import argparse
from collections.abc import Callable

from infinity_jax.cli import options
from infinity_jax.cli.command import command
from infinity_jax.errors import UserError

SWEEP_EXAMPLES = """infinity-jax sweep --config configs/sweeps/emoji.py --dry-run
  infinity-jax sweep --config configs/sweeps/emoji.py --workdir runs/sweep
  infinity-jax sweep --config configs/sweeps/emoji.py --workdir runs/sweep --cell 3
the same command again resumes; exit code 2 where a cell failed, 3 of --dry-run where one does not fit"""
ABLATE_EXAMPLES = """infinity-jax ablate self-correction --workdir runs/self_correction
  infinity-jax ablate decoding --workdir runs/decoding --config.checkpoint=runs/emoji
the same command again resumes"""
DOES_NOT_FIT = 3


def _add_sweep_arguments(command: argparse.ArgumentParser) -> None:
    metavar, text = "FILE[:ARGUMENT]", "a grid: a file, or one that is packed, like sweeps/emoji"
    command.add_argument("--config", type=options.text, required=True, metavar=metavar, help=text)
    _add_common(command)


def _add_ablate_arguments(command: argparse.ArgumentParser) -> None:
    text = "self-correction, decoding, classifier, positions, vocabulary; or a grid's config file"
    command.add_argument("name", type=options.text, metavar="NAME", help=text)
    _add_common(command)


def _add_common(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--workdir",
        type=options.output_folder,
        metavar="DIR",
        help="gets runs.csv and a folder for each cell; resumed if it has any",
    )
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


@command(
    "sweep",
    "train a grid of models, one cell after the other, into one table of runs",
    SWEEP_EXAMPLES,
    _add_sweep_arguments,
    takes_overrides=True,
)
def sweep(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Plans or runs a sweep."""
    from infinity_jax.tools.scaling import sweep

    return _plan_or_run(arguments, arguments.config, overrides, sweep.run)


@command(
    "ablate",
    "one of the paper's ablations on the bundled pictures, as a table beside the paper's numbers",
    ABLATE_EXAMPLES,
    _add_ablate_arguments,
    takes_overrides=True,
)
def ablate(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Plans or runs an ablation: one of the package by its name, or a config file."""
    from infinity_jax import config_files
    from infinity_jax.tools.scaling import ablations

    path = arguments.name
    if ".py" not in path:
        name, colon, argument = path.partition(":")
        path = f"ablations/{name.replace('-', '_')}{colon}{argument}"
        known = config_files.packed("ablations")
        if path.partition(":")[0] not in known:
            names = ", ".join(path.removeprefix("ablations/").replace("_", "-") for path in known)
            raise UserError(f"no ablation {name!r}; there are: {names}")
    return _plan_or_run(arguments, path, overrides, ablations.main)


def _plan_or_run(arguments: argparse.Namespace, path: str, overrides: list[str], main: Callable) -> int:
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
