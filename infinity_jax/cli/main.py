"""The command line, `infinity-jax COMMAND`: the commands have files here, their work is done in the rooms below."""

import argparse
import difflib
import sys
from collections.abc import Sequence

from infinity_jax.checkpoints import origin
from infinity_jax.cli import exit_codes
from infinity_jax.cli.compile import compile
from infinity_jax.cli.convert import convert, export
from infinity_jax.cli.edit import edit
from infinity_jax.cli.evaluate import evaluate, evaluate_tokenizer, evaluate_upscaler, fid
from infinity_jax.cli.generate import generate
from infinity_jax.cli.prepare import prepare
from infinity_jax.cli.sample import sample
from infinity_jax.cli.scaling import scaling
from infinity_jax.cli.sweep import ablate, sweep
from infinity_jax.cli.train import train, train_tokenizer, train_upscaler
from infinity_jax.cli.upscale import upscale
from infinity_jax.config import nearest
from infinity_jax.runtime import stop_signals

COMMANDS = (
    prepare,
    train_tokenizer,
    train,
    train_upscaler,
    sample,
    edit,
    upscale,
    generate,
    evaluate,
    evaluate_tokenizer,
    evaluate_upscaler,
    fid,
    export,
    convert,
    compile,
    sweep,
    scaling,
    ablate,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 2 is a mistake of the user, 1 a full disk, others the command's own."""
    parser, argv = build_parser(), list(sys.argv[1:] if argv is None else argv)
    names = [command.name for command in COMMANDS]
    if not argv:
        parser.print_help(sys.stderr)
        parser.error("name a COMMAND")
    if argv[0] not in names and not argv[0].startswith("-"):
        parser.error(f"unknown command {argv[0]!r}; {nearest(argv[0], names)}")
    arguments, overrides = parser.parse_known_args(argv)
    command = arguments.command
    if overrides and not (command.takes_overrides and overrides[0].startswith("--config.")):
        name = overrides[0].partition("=")[0]
        near = [*difflib.get_close_matches(name, command.option_names(), n=1), ""][0]
        meant = f"did you mean {near}? See" if near else "see"
        parser.error(f"unknown argument {overrides[0]!r}; {meant} infinity-jax {command.name} --help")

    def run() -> int:
        _prepare_process()
        command.check_outputs(arguments)
        return command.run(arguments, overrides) or 0

    return exit_codes.of(run, several=getattr(arguments, "coordinator", None) is not None)


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="infinity-jax",
        description="Text-to-image by predicting bits, scale by scale: prepare data, train, sample, evaluate.",
        epilog="Prepared data, caches and compiled programs lie in $INFINITY_DATA (default ~/.cache/infinity_jax).",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=origin.package())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    return parser


def _prepare_process() -> None:
    stop_signals.install()
    from infinity_jax.runtime import start_up

    start_up.quiet_libraries()
    start_up.keep_freed_memory()
    start_up.log_to_stderr()
    start_up.keep_programs()
