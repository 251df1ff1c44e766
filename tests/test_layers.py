"""Rooms have ranks: a module imports only rooms of lower rank, and its own. One graph, every arrow points down."""

import ast
import sys
from pathlib import Path

from helpers import paths

PACKAGE = paths.ROOT / "infinity_jax"
RANKS = {
    **{"errors": 0, "scales": 1, "config": 2, "config_files": 3, "presets": 3, "files": 3},
    **{"runtime": 4, "tokenizer": 5, "transformer": 5, "text": 6, "checkpoints": 7, "metrics": 7},
    **{"data": 8, "sampling": 9, "training": 10, "evaluation": 11, "tools": 12, "cli": 13, "__init__": 14},
}


def imports(file: Path):
    """Names of the modules of this package that a file imports, at its top or within functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_import_points_to_a_lower_rank():
    upward = []
    for file in sorted(PACKAGE.rglob("*.py")):
        here = file.relative_to(PACKAGE)
        room = here.parts[0].removesuffix(".py")
        for name in imports(file):
            if name.startswith("infinity_jax."):
                other = name.split(".")[1]
                if other != room and RANKS[other] >= RANKS[room]:
                    upward.append(f"{here} [{RANKS[room]}] imports {name} [{RANKS[other]}]")
    assert not upward, "\n".join(upward)


def test_no_module_is_named_like_one_of_pythons():
    names = {file.stem for file in PACKAGE.glob("*.py")} | {folder.name for folder in PACKAGE.iterdir()}
    assert not names & sys.stdlib_module_names - {"__init__", "__future__"}
