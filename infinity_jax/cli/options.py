"""What an option of the command line may be; a mistake raises `argparse.ArgumentTypeError`, which argparse shows."""

import argparse
import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any

from infinity_jax.config import SampleConfig
from infinity_jax.errors import UserError
from infinity_jax.fields import MOST, check
from infinity_jax.files import atomic
from infinity_jax.runtime.processes import PLATFORMS, Processes


class OutputFile(str):
    """A file that a command will write: `Command.check_outputs` tries it before the work begins."""

    check = staticmethod(atomic.check_target)


class OutputSheet(OutputFile):
    """A sheet of pictures that a command will write, with its folder."""

    check = staticmethod(functools.partial(atomic.check_target, makes_folder=True))


class OutputFolder(str):
    """A folder that a command will write into, tried as an `OutputFile` is."""

    check = staticmethod(atomic.check_folder)


def any_text(text: str) -> str:
    """Reads a text that may be empty."""
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} has a NUL in it; leave it out")
    return text


def text(text: str) -> str:
    """Reads a text or a path, which must not be empty: "" is mostly a shell's variable that is not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; give a value, or leave the option out")
    return any_text(text)


def output_file(path: str) -> OutputFile:
    """Reads the path of a file to write."""
    return OutputFile(text(path))


def output_sheet(path: str) -> OutputSheet:
    """Reads the path of a sheet to write."""
    return OutputSheet(text(path))


def output_folder(path: str) -> OutputFolder:
    """Reads the path of a folder to write into."""
    return OutputFolder(text(path))


def numbers(text: str) -> tuple[float, ...]:
    """Reads one finite number or several with commas between."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, nor numbers with commas between")
    return values


def number(text: str) -> float:
    """Reads one number of at least 0."""
    values = numbers(text)
    if len(values) != 1 or values[0] < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not one number of at least 0")
    return values[0]


def seconds(text: str) -> float:
    """Reads one number of seconds above 0, up to a week."""
    values = numbers(text)
    if len(values) != 1 or not 0 < values[0] <= 7 * 24 * 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not one number of seconds above 0, at most a week")
    return values[0]


def whole_number(text: str) -> int:
    """Reads a whole number of at least 0."""
    if not text.isdecimal() or len(text) > 10 or int(text) > MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {MOST}")
    return int(text)


def whole_numbers(text: str) -> tuple[int, ...]:
    """Reads one whole number of at least 0, or several with commas between."""
    return tuple(whole_number(part) for part in text.split(","))


def count(text: str) -> int:
    """Reads a whole number of at least 1."""
    if (number := whole_number(text)) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def probability(text: str) -> float:
    """Reads one number above 0 and at most 1."""
    values = numbers(text)
    if len(values) != 1 or not 0 < values[0] <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not one number above 0 and at most 1")
    return values[0]


def share(text: str) -> float:
    """Reads one number from 0 to 1."""
    values = numbers(text)
    if len(values) != 1 or not 0 <= values[0] <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not one number from 0 to 1")
    return values[0]


def minutes(text: str) -> float:
    """Reads one number of minutes above 0, up to a million."""
    values = numbers(text)
    if len(values) != 1 or not 0 < values[0] <= 10**6:
        raise argparse.ArgumentTypeError(f"{text!r} is not one number of minutes above 0, at most a million")
    return values[0]


# How the command line reads a field of `SampleConfig`, by the form in its metadata.
SETTING_FORMS: dict[str, dict[str, Any]] = {
    "numbers": {"type": numbers, "metavar": "X[,X...]"},
    "number": {"type": number, "metavar": "X"},
    "probability": {"type": probability, "metavar": "X"},
    "share": {"type": share, "metavar": "X"},
    "whole number": {"type": whole_number, "metavar": "N"},
    "whole numbers": {"type": whole_numbers, "metavar": "N[,...]"},
    "flag": {"action": "store_const", "const": True},
    "name": {"type": text, "metavar": "NAME"},
}


def add_json(command: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds --json, where a command writes its numbers."""
    command.add_argument(
        "--json", type=output_file, required=required, metavar="FILE", help="where the numbers are written"
    )


def add_settings(command: argparse.ArgumentParser) -> None:
    """Adds an option for each field of `SampleConfig`."""
    group = command.add_argument_group("sampling settings (default: the checkpoint's own)")
    for field in dataclasses.fields(SampleConfig):
        form = field.metadata["form"]
        how = SETTING_FORMS[form] if isinstance(form, str) else {"choices": form}
        group.add_argument(f"--{field.name.replace('_', '-')}", help=field.metadata["help"], **how)


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings that were named, as values of fields of `SampleConfig`."""
    values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(SampleConfig)}
    values = {name: value for name, value in values.items() if value is not None}
    check(SampleConfig, values)
    return values


if TYPE_CHECKING:
    from infinity_jax.text.rewriting import Rewriter


def add_rewriting(command: argparse.ArgumentParser) -> None:
    """Adds --rewrite and --rewrite-model."""
    group = command.add_argument_group("rewriting of prompts")
    group.add_argument(
        "--rewrite",
        type=text,
        metavar="URL",
        help="have a language model write the prompts longer: an endpoint of OpenAI's chat completions, like "
        "http://localhost:8000/v1; its key is read from OPENAI_API_KEY. Answers are kept in $INFINITY_DATA",
    )
    group.add_argument(
        "--rewrite-model", type=text, metavar="NAME", help="the language model at that address"
    )


def rewriter_of(arguments: argparse.Namespace) -> "Rewriter | None":
    """Makes the rewriter that the options ask for; UserError if one of the two is missing."""
    url, model = arguments.rewrite, arguments.rewrite_model
    if url is None and model is None:
        return None
    if url is None:
        raise UserError("--rewrite-model needs --rewrite too")
    if model is None:
        raise UserError("--rewrite needs --rewrite-model too")
    from infinity_jax.text.rewriting import Rewriter

    return Rewriter(url, model)


def add_processes(command: argparse.ArgumentParser) -> None:
    """Adds the fields of `Processes` as options."""
    group = command.add_argument_group("several processes (one alone needs none of this)")
    group.add_argument(
        "--coordinator",
        type=text,
        metavar="HOST:PORT|auto",
        help="where process 0 is reached; auto: as jax detects it (Cloud TPU, GKE, Slurm)",
    )
    group.add_argument("--processes", type=count, metavar="N", help="how many processes there must be")
    group.add_argument("--process", type=whole_number, metavar="I", help="which of them this is, from 0")
    group.add_argument("--platform", choices=PLATFORMS, help="devices that must be found, or it fails")
    group.add_argument(
        "--start-timeout",
        type=seconds,
        default=Processes.start_timeout,
        metavar="SECONDS",
        help="until all processes and devices must be there, default %(default)g",
    )


def processes_of(arguments: argparse.Namespace) -> Processes:
    """Reads the options of `add_processes`; UserError where they do not go together."""
    names = [field.name for field in dataclasses.fields(Processes)]
    return Processes(**{name: getattr(arguments, name) for name in names})
