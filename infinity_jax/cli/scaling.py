"""`infinity-jax scaling`."""

import argparse

from infinity_jax.cli import options
from infinity_jax.cli.command import command

EXAMPLES = """infinity-jax scaling --table runs/sweep/runs.csv --out scaling
  infinity-jax scaling --table results/emoji/runs.csv --out /tmp/scaling --seed 1
writes DIR/report.html, DIR/fit.json and each figure as PNG and SVG; rows of different vocabularies are fitted apart"""


def _add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--table",
        type=options.text,
        required=True,
        metavar="FILE",
        help="runs.csv of `infinity-jax sweep`; rows with status done are fitted",
    )
    add(
        "--out",
        type=options.output_folder,
        required=True,
        metavar="DIR",
        help="the folder to write, made if there is none",
    )
    add(
        "--seed",
        type=options.whole_number,
        default=0,
        metavar="N",
        help="of the resampling that gives the intervals, default 0",
    )


@command(
    "scaling",
    "fit a scaling law to the table of a sweep: constants with intervals, frontier, plots, a report",
    EXAMPLES,
    _add_arguments,
)
def scaling(arguments: argparse.Namespace, _: list[str]) -> None:
    """Fits and writes."""
    from infinity_jax.tools.scaling import fit

    fit.main(arguments.table, arguments.out, arguments.seed)
