"""`infinity-jax edit`."""

import argparse

from infinity_jax.cli import options
from infinity_jax.cli.command import command
from infinity_jax.cli.sample import add_checkpoint, add_devices, system_of

EXAMPLES = """infinity-jax edit photo.png --mask hat.png --prompt "a red hat" --out out/
  infinity-jax edit *.png --prompt "green apple" --strength 0.5 --out out/
  infinity-jax edit *.png --prompt "green apple" --source-prompt "red apple" --out out/
A mask is as large as its picture, white where it is drawn anew. --strength 0.5 keeps the first half of the scales. Each
PNG holds what was kept as text ("infinity-jax"); sheet.png shows pictures, mask and what came out."""


def _add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("pictures", type=options.text, nargs="+", metavar="PICTURE", help="PNG, JPEG or WebP, of any size")
    add("--prompt", type=options.any_text, required=True, metavar="TEXT", help="what the pictures shall show")
    add(
        "--mask",
        type=options.text,
        metavar="FILE",
        help="white where the pictures are drawn anew; without it they are drawn anew everywhere",
    )
    add(
        "--strength",
        type=options.share,
        metavar="S",
        help="share of the scales that are drawn, the last ones; default 1 with --mask or --source-prompt, else 0.5",
    )
    add(
        "--out",
        type=options.output_folder,
        required=True,
        metavar="DIR",
        help="gets the pictures and sheet.png",
    )
    add(
        "--no-paste",
        action="store_true",
        help="give pictures as the model draws them, instead of putting back what the mask keeps",
    )
    add(
        "--fixed",
        action="store_true",
        help="keep the given picture's own bits instead of quantising what is kept anew at every scale",
    )
    add(
        "--feather",
        type=options.whole_number,
        default=0,
        metavar="N",
        help="let what a mask keeps pass into what is drawn over N tokens of the last scale; default 0",
    )
    add(
        "--source-prompt",
        type=options.any_text,
        metavar="TEXT",
        help="what the pictures show now: only bits that --prompt changes are drawn anew",
    )
    add(
        "--threshold",
        type=options.share,
        default=0.3,
        metavar="X",
        help="with --source-prompt: by how much a bit's probability must change, default 0.3",
    )
    add(
        "--negative-prompt", type=options.any_text, default="", metavar="TEXT", help="what to steer away from"
    )
    add_devices(command)
    add_checkpoint(command)
    options.add_settings(command)


@command(
    "edit", "draw a part of pictures anew: in-painting, out-painting, variations", EXAMPLES, _add_arguments
)
def edit(arguments: argparse.Namespace, _: list[str]) -> None:
    """Edits the pictures."""
    from infinity_jax.sampling import pictures_to_files
    from infinity_jax.sampling.editing import EditRequest

    settings, count = options.settings_of(arguments), len(arguments.pictures)
    strength = arguments.strength
    if strength is None:
        alone = arguments.mask is None and arguments.source_prompt is None
        strength = 0.5 if alone else 1.0
    request = EditRequest(
        [],
        [arguments.prompt] * count,
        None,
        strength,
        range(arguments.seed, arguments.seed + count),
        [arguments.negative_prompt] * count if arguments.negative_prompt else None,
        not arguments.no_paste,
        arguments.fixed,
        arguments.feather,
        None if arguments.source_prompt is None else [arguments.source_prompt] * count,
        arguments.threshold,
    )
    pictures_to_files.main(
        arguments.pictures, arguments.mask, request, arguments.out, system_of(arguments), settings
    )
