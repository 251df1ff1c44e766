"""Hook of mkdocs: reference pages that are made from the code when the site is built, so that they cannot drift.

reference/cli.md from the parsers of `infinity_jax.cli`, reference/config.md from the dataclasses of config files, and
reference/names_release_to_ours.md from the tables with which published weights are converted.
"""

import argparse
import dataclasses
import inspect
import re
from collections.abc import Iterable

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from infinity_jax import presets
from infinity_jax.cli.main import COMMANDS, build_parser
from infinity_jax.fields import described, hints_of
from infinity_jax.tools.convert.links import Link
from infinity_jax.tools.convert.tokenizer_names import tokenizer_links
from infinity_jax.tools.convert.transformer_names import transformer_links
from infinity_jax.training.sections import SECTIONS


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    for name, make in PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content=make()))
    return files


def cli_page() -> str:
    """Writes the page of all commands and their arguments."""
    parser = build_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    text = ["# Command line", str(parser.description), f"{parser.epilog}"]
    for command in COMMANDS:
        own = commands.choices[command.name]
        text += [f"## infinity-jax {command.name}", str(own.description)]
        text += [_table(("argument", "what it is"), (_argument(action) for action in _shown(own)))]
        text += [f"```text\n{own.epilog}\n```"]
    return "\n\n".join(text) + "\n"


def _shown(parser: argparse.ArgumentParser) -> Iterable[argparse.Action]:
    return (a for a in parser._actions if not isinstance(a, argparse._HelpAction))


def _argument(action: argparse.Action) -> tuple[str, str]:
    metavar = action.metavar if isinstance(action.metavar, str) else None
    if metavar is None and action.choices is not None:
        metavar = "{" + ",".join(map(str, action.choices)) + "}"
    name = ", ".join(action.option_strings) or metavar or action.dest
    if action.option_strings and action.nargs != 0 and metavar:
        name = f"{name} {metavar}"
    required = " **Required.**" if action.required and action.option_strings else ""
    text = (action.help or "") % {"default": action.default, "prog": "infinity-jax"}
    return f"`{name}`", text + required


def config_page() -> str:
    """Writes the page of all keys of config files, with their defaults and meanings."""
    text = [
        "# Config files",
        "A config file's keys are the fields of these dataclasses. `--config.SECTION.KEY=VALUE` changes one of them.",
    ]
    for kind, sections in SECTIONS.items():
        text.append(f"## {kind}")
        for section, cls in sections.items():
            doc = inspect.getdoc(cls) or ""
            text += [f"### {kind}: `{section}`", f"`{cls.__module__}.{cls.__name__}`: {doc.splitlines()[0]}"]
            meanings = dict(pair for c in reversed(cls.__mro__) for pair in attributes(c).items())
            meanings |= {f.name: f.metadata["help"] for f in dataclasses.fields(cls) if "help" in f.metadata}
            hints = hints_of(cls)
            rows = (
                (f"`{f.name}`", _default(f), described(hints[f.name]), meanings[f.name])
                for f in dataclasses.fields(cls)
            )
            text.append(_table(("key", "default", "may be", "meaning"), rows))
    return "\n\n".join(text) + "\n"


def attributes(cls: type) -> dict[str, str]:
    """Reads the section "Attributes" of a class's own docstring: name -> meaning. An entry may name several fields."""
    _, _, listed = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in listed.splitlines():
        if match := re.match(r"  (\w+(?:, \w+)*): (.*)", line):
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        elif line.startswith("    "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        elif line.strip():
            break
    return found


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    return "" if field.default_factory is dataclasses.MISSING else f"`{field.default_factory()!r}`"


def names_page() -> str:
    """Writes the page of the release's names of weights beside ours, for one layer and each kind of tensor."""
    transformer = transformer_links(
        dataclasses.replace(presets.PRESETS["2b"].transformer, layers=1), chunks=0
    )
    tokenizer = tokenizer_links(next(iter(presets.TOKENIZERS.values())))
    text = [
        "# Names: the release's and ours",
        "Arrays of all layers are stacked in ours; the release's `blocks.0` stands for each of them (or "
        "`block_chunks.I.module.J`). Linear maps are transposed, convolutions are [h, w, in, out] in ours.",
    ]
    for title, links in (("Transformer, as 2b", transformer), ("Tokenizer", tokenizer)):
        rows = (
            (
                f"`{link.published}`",
                "×".join(map(str, link.published_shape)),
                " ".join(f"`{o}`" for o in link.ours),
            )
            for link in links
            if isinstance(link, Link)
        )
        text += [f"## {title}", _table(("release", "its shape", "ours"), rows)]
    return "\n\n".join(text) + "\n"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    cells = (tuple(cell.replace("|", "\\|").replace("\n", " ") for cell in line) for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


PAGES = {"cli": cli_page, "config": config_page, "names_release_to_ours": names_page}
