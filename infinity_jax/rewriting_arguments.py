"""Options of the commands that can have prompts rewritten; jax is imported when they run."""

import argparse
from typing import TYPE_CHECKING

from infinity_jax.errors import UserError

if TYPE_CHECKING:
    from infinity_jax.text.rewriting import Rewriter


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds --rewrite and --rewrite-model."""
    group = command.add_argument_group("rewriting of prompts")
    group.add_argument(
        "--rewrite",
        metavar="URL",
        help="have a language model write the prompts longer: an endpoint of OpenAI's chat completions, like "
        "http://localhost:8000/v1; its key is read from OPENAI_API_KEY. Answers are kept in $INFINITY_DATA",
    )
    group.add_argument("--rewrite-model", metavar="NAME", help="the language model at that address")


def rewriter_of(arguments: argparse.Namespace) -> "Rewriter | None":
    """What the options ask for; UserError if one of the two is missing."""
    if arguments.rewrite is None and arguments.rewrite_model is None:
        return None
    if arguments.rewrite is None or arguments.rewrite_model is None:
        given, missing = (
            ("--rewrite-model", "--rewrite")
            if arguments.rewrite is None
            else ("--rewrite", "--rewrite-model")
        )
        raise UserError(f"{given} needs {missing} too")
    from infinity_jax.text.rewriting import Rewriter

    return Rewriter(arguments.rewrite, arguments.rewrite_model)
