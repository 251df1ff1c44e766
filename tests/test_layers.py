"""The shape of the package: ranks of rooms, no circles, widths of functions, first words of docstrings."""

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from helpers.paths import ROOT

PACKAGE = ROOT / "infinity_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
# A room imports only rooms of lower rank, and its own modules.
RANKS = {
    **{"errors": 0, "scales": 1, "fields": 1, "config": 2, "config_files": 3, "presets": 3, "files": 3},
    **{
        "runtime": 4,
        "tokenizer": 5,
        "transformer": 5,
        "text": 6,
        "upscaler": 6,
        "checkpoints": 7,
        "metrics": 7,
    },
    **{"data": 8, "sampling": 9, "training": 10, "evaluation": 11, "tools": 12, "cli": 13, "__init__": 14},
}
TREES = {file: ast.parse(file.read_text()) for file in FILES}


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path) -> Iterator[str]:
    """Names of the modules of this package that a file imports, at its top or within functions."""
    modules = {name_of(other) for other in FILES}
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in modules else node.module for name in names if node.module in modules)


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_every_import_points_to_a_lower_rank():
    upward = []
    for file in FILES:
        room = room_of(name_of(file))
        for other in imports(file):
            if room_of(other) != room and RANKS[room_of(other)] >= RANKS[room]:
                upward.append(f"{name_of(file)} [{RANKS[room]}] imports {other} [{RANKS[room_of(other)]}]")
    assert not upward, "\n".join(upward)


def test_no_modules_import_each_other_in_a_circle():
    graph = {name_of(file): set(imports(file)) - {name_of(file)} for file in FILES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names them


def test_no_module_is_named_like_one_of_pythons():
    names = {file.stem for file in PACKAGE.glob("*.py")} | {folder.name for folder in PACKAGE.iterdir()}
    assert not names & sys.stdlib_module_names - {"__init__", "__future__"}


def functions(tree: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """Functions of a module and methods of its classes, not those within functions."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from functions(node)


def test_public_functions_have_at_most_eight_parameters():
    wide = []
    for file, tree in TREES.items():
        for function in functions(tree):
            given = function.args
            names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            if not function.name.startswith("_") and len(set(names) - {"self", "cls"}) > 8:
                wide.append(f"{name_of(file)}.{function.name} has {len(names)}")
    assert not wide, "\n".join(wide)


def test_docstrings_begin_with_what_a_thing_does_or_is():
    """Not with a reference to something else, which a reader would have to find first."""
    wrong = []
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node) or ""
                if re.match(r"(Of|As|The same|That of|What it)\b", text):
                    wrong.append(f"{name_of(file)}.{getattr(node, 'name', '')}: {text[:60]}")
    assert not wrong, "\n".join(wrong)


def test_files_are_read_in_one_sitting():
    long = {name_of(file): len(file.read_text().splitlines()) for file in FILES}
    assert not {name: lines for name, lines in long.items() if lines > 300}
