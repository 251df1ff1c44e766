"""`infinity-jax sample`, and the arguments of all commands that draw."""

import argparse
from typing import TYPE_CHECKING

from infinity_jax.cli import options
from infinity_jax.cli.command import command
from infinity_jax.errors import UserError

if TYPE_CHECKING:
    from infinity_jax.sampling.request import SystemOptions

EXAMPLES = """infinity-jax sample "red heart" "woman astronaut" --out out/
  infinity-jax sample "green apple" --checkpoint runs/emoji --seed 3 --cfg 4 --out out/
  infinity-jax sample --prompts prompts.txt --batch 64 --devices all --skip-existing --out out/
Each PNG holds its prompt, seed and settings as text ("infinity-jax"). sheet.png shows the first 64 pictures,
large ones fewer."""
ALL = "all"
_MOST_PICTURES = 1_000_000


def _add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    given = command.add_mutually_exclusive_group(required=True)
    prompts = given.add_argument(
        "prompts",
        type=options.any_text,
        nargs="*",
        default=[],
        metavar="PROMPT",
        help="what to draw, one picture per prompt",
    )
    # A group takes no "+", and "*" would be content with nothing as soon as an option comes before the prompts.
    prompts.nargs = "+"
    given.add_argument(
        "--prompts",
        type=options.text,
        dest="prompts_file",
        metavar="FILE",
        help="a UTF-8 file with one prompt a line; empty lines are skipped",
    )
    add(
        "--out",
        type=options.output_folder,
        required=True,
        metavar="DIR",
        help="gets one PNG per prompt and sheet.png",
    )
    add(
        "--skip-existing",
        action="store_true",
        help="keep pictures in DIR that an earlier run made of the same prompt, seed, settings and batch, and draw the "
        "rest",
    )
    add(
        "--preview",
        action="store_true",
        help="write beside each picture how it came, coarse to fine: a strip of all scales, and an animated WebP",
    )
    add(
        "--count",
        type=options.count,
        default=1,
        metavar="N",
        help="pictures of each prompt, with seeds that follow each other; default 1",
    )
    add("--aspect-ratio", type=options.text, default="1:1", metavar="H:W", help="height:width, default 1:1")
    add(
        "--negative-prompt", type=options.any_text, default="", metavar="TEXT", help="what to steer away from"
    )
    add_checkpoint(command)
    add_drawing(command)
    options.add_settings(command)
    options.add_rewriting(command)


def add_drawing(command: argparse.ArgumentParser) -> None:
    """Adds --budget, --batch and how devices are used: what commands that draw long lists have."""
    add = command.add_argument
    add(
        "--budget",
        type=options.text,
        metavar="NAME",
        help="pixels: 0.06M 0.25M 0.60M 1M; default: the checkpoint's own",
    )
    add(
        "--batch",
        type=options.count,
        metavar="N",
        help="pictures drawn at once, at most; default: 1, 4 or 16, by how many there are, fewer where they are large",
    )
    add_devices(command)


def add_devices(command: argparse.ArgumentParser) -> None:
    """Adds --devices, --mesh and --rules."""
    devices = command.add_mutually_exclusive_group()
    devices.add_argument(
        "--devices",
        type=_devices,
        metavar="N|all",
        help="draw on so many devices, each its share of a batch: short for --mesh data=N; default: on one",
    )
    devices.add_argument(
        "--mesh",
        type=options.text,
        metavar="AXIS=N[,...]",
        help="the same with the model split too, like data=2,tensor=4",
    )
    command.add_argument(
        "--rules",
        type=options.any_text,
        default="",
        metavar="NAME",
        help="dp fsdp fsdp_tp fsdp_tp_sp; default: the least for the mesh",
    )


def add_checkpoint(command: argparse.ArgumentParser) -> None:
    """Adds --checkpoint and --seed."""
    command.add_argument(
        "--checkpoint",
        type=options.text,
        metavar="DIR",
        help="a training's --workdir, or a folder of convert or export; default: the one in the package",
    )
    command.add_argument("--seed", type=options.whole_number, default=0, metavar="N", help="default 0")


@command("sample", "draw pictures from prompts", EXAMPLES, _add_arguments)
def sample(arguments: argparse.Namespace, _: list[str]) -> None:
    """Draws the pictures."""
    from infinity_jax.text import prompt

    rewriter, settings = options.rewriter_of(arguments), options.settings_of(arguments)
    prompts = arguments.prompts or prompt.read_prompts(arguments.prompts_file)
    if len(prompts) * arguments.count > _MOST_PICTURES:
        raise UserError(
            f"--count {arguments.count} of {len(prompts)} prompts are more than {_MOST_PICTURES:,} pictures; "
            "ask for fewer"
        )
    if rewriter is not None:
        prompts = rewriter(prompts)
    prompts = [prompt for prompt in prompts for _ in range(arguments.count)]
    from infinity_jax.sampling import prompts_to_files
    from infinity_jax.sampling.request import SampleRequest

    negative, count = arguments.negative_prompt, len(prompts)
    request = SampleRequest(
        prompts,
        range(arguments.seed, arguments.seed + count),
        [negative] * count if negative else None,
        arguments.aspect_ratio,
        arguments.budget,
        arguments.batch,
    )
    how = arguments.skip_existing, arguments.preview
    prompts_to_files.main(request, arguments.out, system_of(arguments), settings, *how)


def system_of(arguments: argparse.Namespace) -> "SystemOptions":
    """Returns what draws, as the options of `add_checkpoint` and `add_drawing` say."""
    from infinity_jax.checkpoints.opened import BUNDLED
    from infinity_jax.sampling.request import SystemOptions

    checkpoint = arguments.checkpoint or BUNDLED
    return SystemOptions(checkpoint, _mesh(arguments), arguments.rules)


def _mesh(arguments: argparse.Namespace) -> str | None:
    if arguments.devices is None:
        return arguments.mesh
    if arguments.devices == ALL:
        import jax

        return f"data={jax.device_count()}"
    return f"data={arguments.devices}"


def _devices(text: str) -> str | int:
    return text if text == ALL else options.count(text)
