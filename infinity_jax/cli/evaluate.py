"""`infinity-jax evaluate`."""

import argparse

from infinity_jax.cli import options, sample
from infinity_jax.cli.command import command

EXAMPLES = """infinity-jax evaluate --json evaluation.json
  infinity-jax evaluate --checkpoint runs/emoji --cfg 3 --sheet sheet.png --json evaluation.json"""


def _add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--json", required=True, metavar="FILE", help="where the numbers are written")
    sample.add_checkpoint(command)
    options.add_settings(command)
    add(
        "--prompts",
        type=options.whole_number,
        default=256,
        metavar="N",
        help="train prompts for retrieval, default 256",
    )
    add("--sheet", metavar="FILE", help="a PNG of generated beside real pictures")


@command("evaluate", "measure a checkpoint: loss, reconstruction, KID, retrieval", EXAMPLES, _add_arguments)
def evaluate(arguments: argparse.Namespace, _: list[str]) -> None:
    """Measures a checkpoint."""
    from infinity_jax.evaluation import evaluate_checkpoint

    evaluate_checkpoint.main(
        json_file=arguments.json,
        checkpoint=arguments.checkpoint,
        seed=arguments.seed,
        settings=options.settings_of(arguments),
        prompts=arguments.prompts,
        sheet=arguments.sheet,
    )
