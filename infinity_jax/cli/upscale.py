"""`infinity-jax upscale`."""

import argparse

from infinity_jax.cli import options
from infinity_jax.cli.command import command
from infinity_jax.cli.sample import add_checkpoint, add_devices, system_of
from infinity_jax.config import COLOURS
from infinity_jax.errors import UserError

EXAMPLES = """infinity-jax upscale small.png --checkpoint runs/upscaler_2 --prompt "red heart" --out out/
  infinity-jax upscale *.png --checkpoint nsarm --captions captions.txt --tile --out out/
Each PNG holds how it was made as text ("infinity-jax"); sheet.png shows the pictures beside bicubic ones."""


def _add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("pictures", type=options.text, nargs="+", metavar="PICTURE", help="PNG, JPEG or WebP")
    texts = command.add_mutually_exclusive_group()
    texts.add_argument(
        "--prompt",
        type=options.any_text,
        metavar="TEXT",
        help="what the pictures show; default: the upscaler's own text",
    )
    texts.add_argument(
        "--captions", type=options.text, metavar="FILE", help="a text file, one line for each picture"
    )
    add(
        "--out",
        type=options.output_folder,
        required=True,
        metavar="DIR",
        help="gets the pictures and sheet.png",
    )
    add(
        "--colour",
        choices=COLOURS,
        help="how colours are brought back to the small picture's; default: the upscaler's own",
    )
    add(
        "--tile",
        action="store_true",
        help="draw pictures of other sizes in overlapping tiles of the upscaler's size",
    )
    add_devices(command)
    add_checkpoint(command)
    options.add_settings(command)


@command("upscale", "make small pictures large: super-resolution", EXAMPLES, _add_arguments)
def upscale(arguments: argparse.Namespace, _: list[str]) -> None:
    """Upscales the pictures."""
    if arguments.checkpoint is None:
        raise UserError(
            "--checkpoint is missing; name a workdir of infinity-jax train-upscaler, or a folder that was exported or "
            "converted"
        )
    from infinity_jax.sampling import upscaled_files
    from infinity_jax.sampling.upscaling import UpscaleRequest
    from infinity_jax.text.prompt import read_prompts

    count, prompts = len(arguments.pictures), None
    if arguments.captions is not None:
        prompts = read_prompts(arguments.captions)
    elif arguments.prompt is not None:
        prompts = [arguments.prompt] * count
    seeds = range(arguments.seed, arguments.seed + count)
    request = UpscaleRequest([], prompts, seeds, arguments.colour, arguments.tile)
    settings = options.settings_of(arguments)
    upscaled_files.main(arguments.pictures, request, arguments.out, system_of(arguments), settings)
