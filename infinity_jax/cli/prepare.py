"""`infinity-jax prepare`."""

import argparse
import os

from infinity_jax.cli import options
from infinity_jax.cli.command import command
from infinity_jax.errors import UserError

EXAMPLES = """infinity-jax prepare
  infinity-jax prepare --source jsonl:splits --out shards --workers 8
  infinity-jax train --config configs/t2i.py:debug --config.data.source=records:shards --workdir /tmp/run"""


def _add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--source",
        type=options.text,
        default="emoji_captions",
        metavar="NAME",
        help="emoji_captions (the bundled pictures, the default) or folder:PATH, "
        "a folder of pictures with captions in a csv or jsonl file; with --out: jsonl:DIR (files "
        "[h_div_w]_[num].jsonl), folder:PATH, tfds:NAME or tar:GLOB",
    )
    add(
        "--out",
        type=options.output_folder,
        metavar="DIR",
        help="write shards by aspect ratio there, and report.json; resumed if it has any",
    )
    add(
        "--workers",
        type=options.count,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes, default one for each core",
    )
    add(
        "--features",
        type=options.text,
        metavar="FILE[:ARGUMENT]",
        help="of --source records:DIR: write into --out what the tokenizer and the text encoder of this config make of "
        "the pictures and captions; --config.KEY=VALUE changes one of its keys",
    )


@command("prepare", "prepare a data set", EXAMPLES, _add_arguments, takes_overrides=True)
def prepare(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Prepares pictures, or the features of prepared ones."""
    from infinity_jax.data.prepared import prepare

    if arguments.features is not None:
        prepare.features(arguments.features, overrides, arguments.source, arguments.out)
    elif overrides:
        raise UserError(f"{overrides[0]} changes a config, and there is none without --features")
    else:
        prepare.main(arguments.source, arguments.out, arguments.workers)
