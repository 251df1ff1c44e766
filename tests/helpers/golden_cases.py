"""What the golden tests go through: for each of their arguments the names and values that a folder gives."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from helpers.golden_folder import GoldenFolder
from helpers.paths import GOLDEN

Named = Iterator[tuple[str, Any]]
INPUTS = re.compile(r"text_features|raw_features|flip_mask_\d+|x_BLC_wo_prefix|gt_bits")


def files_of(kind: str) -> Callable[[GoldenFolder], Named]:
    return lambda folder: ((file.name, file) for file in folder.of_kind(kind))


def resizings(folder: GoldenFolder) -> Named:
    for file in folder.of_kind("resizes"):
        for case in file.info["cases"]:
            yield f"{file.name}-{case['name']}", (file, case)


def entropies(folder: GoldenFolder) -> Named:
    for file in folder.of_kind("quantiser"):
        for name in file.arrays:
            if match := re.fullmatch(r"entropy_T([\d.]+)", name):
                yield f"{file.name}-T{match[1]}", (file, match[1])


def corrections(folder: GoldenFolder) -> Named:
    """Files with flips, and prefixes of the names of the arrays that came out."""
    for file in folder.of_kind("quantiser"):
        for prefix in ("flip_", "noflip_"):
            if f"{prefix}x_BLC_wo_prefix" in file.arrays:
                yield f"{file.name}-{prefix}", (file, prefix)
    for file in folder.of_kind("forward"):
        if "raw_features" in file.arrays:
            yield file.name, (file, "")


def intermediates(folder: GoldenFolder) -> Named:
    for file in folder.of_kind("forward"):
        for name in file.arrays:
            if not INPUTS.fullmatch(name):
                yield f"{file.name}-{name}", (file, name)


def losses(folder: GoldenFolder) -> Named:
    for file in folder.of_kind("gradients"):
        for name in file.info["losses"]:
            yield f"{file.name}-{name}", (file, name)


def duplicates(folder: GoldenFolder) -> Named:
    """Weights that are there in several formats, of Infinity's own folder."""
    if any("kind" in file.info for file in folder.files):
        return
    for prefix in folder.prefixes():
        for kind in ("transformer", "tokenizer"):
            if len(files := folder.weights(kind, prefix)) > 1:
                yield f"{prefix}-{kind}", (kind, prefix, files)


# What a test's argument goes through: names and values.
ARGUMENTS: dict[str, Callable[[GoldenFolder], Named]] = {
    "duplicates": duplicates,
    "schedules": files_of("schedules"),
    "resizing": resizings,
    "quantiser": files_of("quantiser"),
    "entropy": entropies,
    "corrected": corrections,
    "autoencoder": files_of("autoencoder"),
    "intermediate": intermediates,
    "loss": losses,
    "sampling": files_of("sampling"),
}


def system_folder(config: Any, system: str) -> GoldenFolder:
    """The folder that `--golden` names, or where it names none the copy of another system's in the tests."""
    path = config.getoption("golden")
    return read_folder(GOLDEN / system if path == GOLDEN / "release" else path)


def go_through(metafunc: Any, system: str, kinds: Mapping[str, str]) -> None:
    """Makes a test of each file of a system's folder, for arguments that stand for a kind of file."""
    folder = system_folder(metafunc.config, system)
    for argument in kinds.keys() & set(metafunc.fixturenames):
        files = folder.of_kind(kinds[argument])
        metafunc.parametrize(argument, files, ids=[file.name for file in files])


@functools.cache
def read_folder(path: Path) -> GoldenFolder:
    """The folder, read once."""
    return GoldenFolder(path)
