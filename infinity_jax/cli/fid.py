"""`infinity-jax fid`."""

import argparse

from infinity_jax.cli.command import command

EXAMPLES = """infinity-jax fid --generated out/coco --real val2014 --inception pt_inception-2015-12-05-6726825d.pth \\
      --json fid.json
What is computed of the real pictures is kept in $INFINITY_DATA; the log names the file, which --real takes too, and any
.npz with mu and sigma as pytorch-fid writes it (for FID alone). Folders are read with all that is below them."""


def _add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--generated", required=True, metavar="DIR", help="pictures, PNG, JPEG or WebP, of any sizes")
    add("--real", required=True, metavar="DIR|STATS", help="real pictures, or an .npz with their statistics")
    add(
        "--inception",
        required=True,
        metavar="FILE",
        help="the weights: pt_inception-2015-12-05-6726825d.pth of pytorch-fid",
    )
    add("--json", required=True, metavar="FILE", help="where the numbers are written")


@command(
    "fid", "FID and KID between two folders of pictures, on the Inception-v3 of FID", EXAMPLES, _add_arguments
)
def fid(arguments: argparse.Namespace, _: list[str]) -> None:
    """Measures."""
    from infinity_jax.evaluation import fid_of_folders

    fid_of_folders.main(arguments.generated, arguments.real, arguments.inception, arguments.json)
