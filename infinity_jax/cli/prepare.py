"""`infinity-jax prepare`."""

import argparse
import os

from infinity_jax.cli import options
from infinity_jax.cli.command import command
from infinity_jax.errors import UserError

# Those of `infinity_jax.data.pictures`, whose import would keep --help waiting.
FITS = ("crop", "pad", "stretch")
EXAMPLES = """infinity-jax prepare
  infinity-jax prepare --source folder:my_pictures --preview preview.png --fit pad
  infinity-jax prepare --source jsonl:splits --out shards --workers 8
  infinity-jax train --config configs/t2i.py:debug --config.data.source=records:shards --workdir /tmp/run"""


def _add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--source",
        type=options.text,
        default="emoji_captions",
        metavar="NAME",
        help="emoji_captions (the bundled pictures, the default), emoji_styles (fetched by npm) or folder:PATH, "
        "a folder of pictures with captions; with --out: jsonl:DIR (files "
        "[h_div_w]_[num].jsonl), folder:PATH, tfds:NAME, tar:GLOB or scenes:[SPLIT/]COUNT[@HEIGHTxWIDTH], drawn once "
        "and kept",
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
        "--preview",
        type=options.output_file,
        metavar="FILE",
        help="draw a PNG: pictures of --source beside what a model is fed of them, and what its tokenizer gives back",
    )
    add("--fit", choices=FITS, help="in the preview: how other proportions become a square, default crop")
    add(
        "--tokenizer",
        type=options.text,
        metavar="DIR",
        help="in the preview: a workdir of train-tokenizer, or an exported folder; default: the bundled one",
    )
    add(
        "--features",
        type=options.text,
        metavar="FILE[:ARGUMENT]",
        help="of --source records:DIR: write into --out what the tokenizer and the text encoder of this config make of "
        "the pictures and captions; --config.KEY=VALUE changes one of its keys",
    )


def _preview(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Draws the preview."""
    if overrides or arguments.out is not None or arguments.features is not None:
        raise UserError("--preview FILE goes with --source, --fit and --tokenizer only")
    from pathlib import Path

    from infinity_jax.data import preview

    how = (arguments.fit or "crop", arguments.tokenizer or "bundled")
    print(preview.write_preview(arguments.source, Path(arguments.preview), *how))


@command("prepare", "prepare a data set", EXAMPLES, _add_arguments, takes_overrides=True)
def prepare(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Prepares pictures, or the features of prepared ones."""
    from infinity_jax.data.prepared import prepare

    if arguments.preview is not None:
        _preview(arguments, overrides)
    elif (arguments.fit, arguments.tokenizer) != (None, None):
        raise UserError(
            "--fit and --tokenizer say what --preview FILE draws; in training they are config keys"
        )
    elif arguments.features is not None:
        prepare.features(arguments.features, overrides, arguments.source, arguments.out)
    elif overrides:
        raise UserError(f"{overrides[0]} changes a config, and there is none without --features")
    else:
        prepare.main(arguments.source, arguments.out, arguments.workers)
