"""`infinity-jax generate`."""

import argparse
import re
from pathlib import Path

from infinity_jax.cli import options, sample
from infinity_jax.cli.command import command
from infinity_jax.errors import UserError
from infinity_jax.evaluation.benchmarks import layouts

EXAMPLES = """infinity-jax generate --benchmark geneval --prompts geneval/prompts/evaluation_metadata.jsonl \\
      --checkpoint infinity_2b --cfg 4 --out out/geneval
  infinity-jax generate --benchmark dpg --prompts ELLA/dpg_bench/prompts --out out/dpg --shard 0/8
  infinity-jax generate --benchmark coco --prompts captions_val2014.json --limit 30000 --out out/coco
  infinity-jax generate --benchmark scenes --checkpoint runs/scenes --out out/scenes
The same command again resumes: whole pictures are kept. DIR/card.json says how they were made, and what to run next;
with other settings DIR is refused. Shards write into the same DIR, and draw the pictures of a single run. The pictures
of scenes are judged here, into DIR/scenes.json."""
_SCENES = "scenes"


def _add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--benchmark", required=True, choices=(*layouts.BENCHMARKS, _SCENES), help="which one")
    add(
        "--prompts",
        type=options.text,
        metavar="PATH",
        help="your copy of its prompts: "
        + "; ".join(f"{b.name}: {b.prompts}" for b in layouts.BENCHMARKS.values())
        + "; scenes: none",
    )
    add(
        "--out",
        type=options.output_folder,
        required=True,
        metavar="DIR",
        help="gets the pictures and card.json",
    )
    add("--limit", type=options.count, metavar="N", help="only the first N prompts")
    add(
        "--shard",
        type=_shard,
        default=(0, 1),
        metavar="I/N",
        help="only the prompts I, I + N, I + 2N ...; I from 0, so that I/N is 0/8 ... 7/8 of 8 processes",
    )
    sample.add_checkpoint(command)
    sample.add_drawing(command)
    options.add_settings(command)
    options.add_rewriting(command)


@command(
    "generate",
    "draw the pictures of a benchmark of the field, as its own evaluator reads them",
    EXAMPLES,
    _add_arguments,
)
def generate(arguments: argparse.Namespace, _: list[str]) -> None:
    """Draws the pictures."""
    rewriter, name = options.rewriter_of(arguments), arguments.benchmark
    if (arguments.prompts is None) != (name == _SCENES):
        raise UserError(
            f"--prompts {arguments.prompts} is not for --benchmark {_SCENES}, which has its own; leave it out"
            if name == _SCENES
            else f"--benchmark {name} needs --prompts PATH, your copy of {layouts.BENCHMARKS[name].prompts}"
        )
    prompt_set = None
    if name != _SCENES:
        prompt_set = layouts.read(layouts.BENCHMARKS[name], Path(arguments.prompts), arguments.limit)
    from infinity_jax.evaluation.benchmarks import generate
    from infinity_jax.evaluation.scenes import benchmark as scenes_benchmark

    plan = generate.Plan(arguments.seed, arguments.budget, arguments.batch, arguments.shard)
    how = sample.system_of(arguments), options.settings_of(arguments), rewriter
    if prompt_set is None:
        scenes_benchmark.main(Path(arguments.out), arguments.limit, plan, *how)
    else:
        generate.main(prompt_set, arguments.out, plan, *how)


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard I/N with I from 0 to N - 1, like 0/8")
    return int(found[1]), int(found[2])
