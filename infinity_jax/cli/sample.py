"""`infinity-jax sample`, and the arguments of all commands that draw."""

import argparse
from typing import Any

from infinity_jax.cli import options
from infinity_jax.cli.command import Command

EXAMPLES = """infinity-jax sample "red heart" "woman astronaut" --out out/
  infinity-jax sample "green apple" --checkpoint runs/emoji --seed 3 --cfg 4 --out out/
  infinity-jax sample --prompts prompts.txt --batch 64 --devices all --skip-existing --out out/
Each PNG holds its prompt, seed and settings as text ("infinity-jax"). sheet.png shows the first 64 pictures,
large ones fewer."""
GUIDANCE = ("logits", "features", "pyramid", "none")
ALL = "all"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments of `sample`."""
    add = command.add_argument
    given = command.add_mutually_exclusive_group(required=True)
    prompts = given.add_argument(
        "prompts", nargs="*", default=[], metavar="PROMPT", help="what to draw, one picture per prompt"
    )
    # A group takes no "+", and "*" would be content with nothing as soon as an option comes before the prompts.
    prompts.nargs = "+"
    given.add_argument(
        "--prompts",
        dest="prompts_file",
        metavar="FILE",
        help="a UTF-8 file with one prompt a line; empty lines are skipped",
    )
    add("--out", required=True, metavar="DIR", help="gets one PNG per prompt and sheet.png")
    add(
        "--skip-existing",
        action="store_true",
        help="keep pictures in DIR that an earlier run made of the same prompt, seed and settings, and draw the rest",
    )
    add("--aspect-ratio", default="1:1", metavar="H:W", help="height:width, default 1:1")
    add("--negative-prompt", default="", metavar="TEXT", help="what to steer away from")
    add_settings(command)
    add_drawing(command)
    options.add_rewriting(command)


def add_drawing(command: argparse.ArgumentParser) -> None:
    """Adds those of the commands that draw long lists; `drawing_options` reads them."""
    add = command.add_argument
    add(
        "--top-p",
        type=options.probability,
        metavar="X",
        help="a bit value with probability <= 1 - X is never drawn",
    )
    add("--budget", metavar="NAME", help="pixels: 0.06M 0.25M 0.60M 1M; default: the checkpoint's own")
    add("--guidance", choices=GUIDANCE, help="what guidance mixes; default: the checkpoint's own")
    add(
        "--unguided-scales",
        type=options.whole_numbers,
        metavar="N[,...]",
        help="scales (from 0) that draw with the caption alone, at half the cost",
    )
    add(
        "--reuse-guidance",
        action="store_const",
        const=True,
        help="guide them by what the caption changed at the last guided scale",
    )
    add(
        "--batch",
        type=options.count,
        metavar="N",
        help="pictures drawn at once; default: 16, fewer where they are large",
    )
    add(
        "--no-scan-layers",
        dest="scan_layers",
        action="store_false",
        help="compile every layer for itself: longer to compile, then faster on a CPU",
    )
    devices = command.add_mutually_exclusive_group()
    devices.add_argument(
        "--devices",
        type=_devices,
        metavar="N|all",
        help="draw on so many devices, each its share of a batch: short for --mesh data=N; default: on one",
    )
    devices.add_argument(
        "--mesh",
        metavar="AXIS=N[,...]",
        help="the same with the model split too, like data=2,tensor=4",
    )
    add(
        "--rules",
        default="",
        metavar="NAME",
        help="dp fsdp fsdp_tp fsdp_tp_sp; default: the least for the mesh",
    )


def add_settings(command: argparse.ArgumentParser) -> None:
    """Adds those that all commands which draw have."""
    add = command.add_argument
    add(
        "--checkpoint",
        metavar="DIR",
        help="a training's --workdir, or a folder of convert or export; default: the one in the package",
    )
    add("--seed", type=options.whole_number, default=0, metavar="N", help="default 0")
    add(
        "--cfg",
        type=options.numbers,
        metavar="X[,X...]",
        help="strength of guidance, one number or one per scale",
    )
    add(
        "--tau",
        type=options.numbers,
        metavar="X[,X...]",
        help="temperature of the bits, one number or one per scale",
    )
    add(
        "--pruning",
        metavar="NAME",
        help="fastvar: run fewer tokens at late scales, for other pictures sooner; none (the default); "
        "or SCALE:SHARE[,...] of the tokens, scales from 0, share 0 skips the scale",
    )


def run(arguments: argparse.Namespace, _: list[str]) -> None:
    """Draws the pictures."""
    from infinity_jax.text import prompt

    rewriter = options.rewriter_of(arguments)
    prompts = arguments.prompts or prompt.read_prompts(arguments.prompts_file)
    if rewriter is not None:
        prompts = rewriter(prompts)
    from infinity_jax.sampling import prompts_to_files

    prompts_to_files.main(
        prompts,
        out=arguments.out,
        seed=arguments.seed,
        aspect_ratio=arguments.aspect_ratio,
        negative_prompt=arguments.negative_prompt,
        skip_existing=arguments.skip_existing,
        **drawing_options(arguments),
    )


def drawing_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_settings` and `add_drawing` added, as keywords of `prompts_to_files.main`; all but the seed."""
    return {
        "checkpoint": arguments.checkpoint,
        "cfg": arguments.cfg,
        "tau": arguments.tau,
        "top_p": arguments.top_p,
        "budget": arguments.budget,
        "guidance": arguments.guidance,
        "pruning": arguments.pruning,
        "unguided_scales": arguments.unguided_scales,
        "reuse_guidance": arguments.reuse_guidance,
        "batch": arguments.batch,
        "mesh": _mesh(arguments),
        "rules": arguments.rules,
        "scan_layers": arguments.scan_layers,
    }


def _mesh(arguments: argparse.Namespace) -> str | None:
    if arguments.devices is None:
        return arguments.mesh
    if arguments.devices == ALL:
        import jax

        return f"data={jax.device_count()}"
    return f"data={arguments.devices}"


def _devices(text: str) -> str | int:
    return text if text == ALL else options.count(text)


SAMPLE = Command(
    "sample",
    "draw pictures from prompts",
    EXAMPLES,
    add_arguments,
    run,
)
