"""The one shape of a command."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

from infinity_jax.cli.options import OutputFile, OutputFolder

Run = Callable[[argparse.Namespace, list[str]], int | None]


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of `infinity-jax`. Heavy packages are imported within `run`, so that --help is answered at once.

    Attributes:
      name: the word after `infinity-jax`.
      summary: what it does, in the list of commands and on top of its help.
      examples: command lines, and what else the help should say at its end.
      add_arguments: adds its arguments to a parser.
      run: (arguments, --config.KEY=VALUE overrides) -> exit code; None is 0.
      takes_overrides: whether --config.KEY=VALUE is understood.
    """

    name: str
    summary: str
    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Run
    takes_overrides: bool = False

    def option_names(self) -> list[str]:
        """Lists the names of the command's options."""
        parser = argparse.ArgumentParser()
        self.add_arguments(parser)
        return list(parser._option_string_actions)

    def check_outputs(self, arguments: argparse.Namespace) -> None:
        """Raises UserError where a file or a folder that the arguments name cannot be written."""
        for name, value in vars(arguments).items():
            if isinstance(value, OutputFile | OutputFolder):
                value.check(Path(value), f"--{name.replace('_', '-')}")

    def add_to(self, commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
        """Adds the command's parser, which hands `self` on as `arguments.command`."""
        parser = commands.add_parser(
            self.name,
            help=self.summary,
            description=f"{self.summary[0].upper()}{self.summary[1:]}.",
            epilog=f"examples:\n  {self.examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_arguments(parser)
        if self.takes_overrides:
            # Shown in the help only: argparse hands these on as unknown arguments, and config_files reads them.
            group = parser.add_argument_group("changes to the config")
            group.add_argument(
                "--config.KEY=VALUE",
                dest="_",
                metavar="",
                help="change one key, like --config.train.steps=100; may be repeated",
            )
        parser.set_defaults(command=self)


def command(
    name: str,
    summary: str,
    examples: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    takes_overrides: bool = False,
) -> Callable[[Run], Command]:
    """Makes a `Command` of the function that it decorates."""
    return lambda run: Command(name, summary, examples, add_arguments, run, takes_overrides)
