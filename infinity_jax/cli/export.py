"""`infinity-jax export`."""

import argparse

from infinity_jax.cli.command import command
from infinity_jax.config import WEIGHT_DTYPES


def _add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="a training's --workdir or a folder")
    add("--out", required=True, metavar="DIR", help="the folder to write")
    add("--dtype", choices=WEIGHT_DTYPES, default="float16", help="of the weights on disk, default float16")


@command(
    "export",
    "write a training's averaged weights as one small folder to share",
    "infinity-jax export --checkpoint runs/emoji --out emoji",
    _add_arguments,
)
def export(arguments: argparse.Namespace, _: list[str]) -> None:
    """Writes the folder."""
    from infinity_jax.checkpoints import pretrained

    pretrained.export(arguments.checkpoint, arguments.out, arguments.dtype)
