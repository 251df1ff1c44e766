"""`infinity-jax convert` and `export`: folders of weights."""

import argparse

from infinity_jax.cli import options
from infinity_jax.cli.command import command
from infinity_jax.config import WEIGHT_DTYPES
from infinity_jax.errors import UserError

KINDS = ("transformer", "tokenizer", "upscaler", "t5")
EXAMPLES = """infinity-jax convert --from infinity_2b_reg.pth --kind transformer --config 2b --out 2b
  infinity-jax convert --from infinity_vae_d32reg.pth --kind tokenizer --config 2b --out 2b
  infinity-jax convert --from flan-t5-xl --kind t5 --config xl --out 2b
  infinity-jax convert --to-torch mine.pth --from 2b --kind transformer"""


def _add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--from",
        type=options.text,
        dest="source",
        required=True,
        metavar="FILE_OR_DIR",
        help="published weights: .pth, .pt, .bin, .safetensors or a folder of shards; "
        "with --to-torch: a folder that convert or export wrote",
    )
    command.add_argument("--kind", choices=KINDS, required=True, help="what the weights are")
    command.add_argument(
        "--config",
        type=options.text,
        metavar="NAME_OR_FILE",
        help="a published size (2b 8b 125m 361m 940m 2.2b 4.7b; var-d16 to var-d36; "
        "for a tokenizer also d14 to d64, var, bsqvit-b18 and others; for an upscaler nsarm), a .py config "
        'file, or a .json file like {"transformer": {"layers": 4, ...}} or {"tokenizer": {"bits": 16, ...}}; '
        "for t5: small base large xl xxl or a config.json of Hugging Face",
    )
    command.add_argument(
        "--out",
        type=options.output_folder,
        metavar="DIR",
        help="the folder to write; parts of one model go into one",
    )
    command.add_argument(
        "--to-torch",
        type=options.output_file,
        metavar="FILE",
        help="the way back: a .pth or .safetensors file to write",
    )


@command("convert", "published PyTorch weights to a checkpoint folder, and back", EXAMPLES, _add_arguments)
def convert(arguments: argparse.Namespace, _: list[str]) -> None:
    """Converts; UserError where the arguments do not go together."""
    _check(arguments)
    from infinity_jax.tools.convert import convert

    if arguments.to_torch is not None:
        convert.to_torch(arguments.to_torch, arguments.source, arguments.kind)
    else:
        convert.main(arguments.source, arguments.kind, arguments.config, arguments.out)


def _check(arguments: argparse.Namespace) -> None:
    given = {f"--{name}" for name in ("config", "out") if getattr(arguments, name) is not None}
    if arguments.to_torch is not None:
        if given:
            raise UserError(f"--to-torch takes no {' and no '.join(sorted(given))}; leave it out")
        if arguments.kind == "t5":
            raise UserError(
                "--to-torch writes a transformer or a tokenizer, not t5, which never changes here"
            )
    elif missing := sorted({"--config", "--out"} - given):
        raise UserError(f"{' and '.join(missing)} missing; or, for the way back to PyTorch, --to-torch FILE")


def _add_export_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--checkpoint",
        type=options.text,
        required=True,
        metavar="DIR",
        help="a training's --workdir or a folder",
    )
    add("--out", type=options.output_folder, required=True, metavar="DIR", help="the folder to write")
    add("--dtype", choices=WEIGHT_DTYPES, default="float16", help="of the weights on disk, default float16")


@command(
    "export",
    "write a training's averaged weights as one small folder to share",
    "infinity-jax export --checkpoint runs/emoji --out emoji",
    _add_export_arguments,
)
def export(arguments: argparse.Namespace, _: list[str]) -> None:
    """Writes the folder."""
    from infinity_jax.checkpoints import pretrained

    pretrained.export(arguments.checkpoint, arguments.out, arguments.dtype)
