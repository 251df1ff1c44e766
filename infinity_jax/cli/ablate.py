"""Arguments of `infinity-jax ablate`."""

import argparse
from pathlib import Path

from infinity_jax.cli import sweep
from infinity_jax.errors import UserError

SUMMARY = "one of the paper's ablations on the bundled pictures, as a table beside the paper's numbers"
EXAMPLES = """infinity-jax ablate self-correction --workdir runs/self_correction
  infinity-jax ablate decoding --workdir runs/decoding --config.checkpoint=runs/emoji
the same command again goes on"""
_CONFIGS = Path(__file__).parents[2] / "configs" / "ablations"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds them."""
    text = "self-correction, decoding, classifier, positions, vocabulary; or a grid's config file"
    command.add_argument("name", metavar="NAME", help=text)
    sweep.add_common(command)


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Plans or runs the ablation."""
    from infinity_jax.tools.scaling import ablations

    path = arguments.name
    if ".py" not in path:
        name, colon, argument = path.partition(":")
        file = _CONFIGS / f"{name.replace('-', '_')}.py"
        if not file.is_file():
            known = ", ".join(sorted(file.stem.replace("_", "-") for file in _CONFIGS.glob("*.py")))
            raise UserError(
                f"no ablation {name!r}; there are: {known or f'none, as {_CONFIGS} does not exist'}"
            )
        path = f"{file}{colon}{argument}"
    return sweep.plan_or_run(arguments, path, overrides, ablations.main)
