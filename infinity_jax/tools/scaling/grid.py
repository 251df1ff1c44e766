"""A grid of runs from one config file: every combination of a label of each axis is a cell."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from infinity_jax import config_files
from infinity_jax.config_files import from_dict
from infinity_jax.errors import UserError
from infinity_jax.fields import Checked, FilePath, OneOf, Range, Unlimited, WholeNumber
from infinity_jax.metrics import kid
from infinity_jax.runtime.chips import CHIPS
from infinity_jax.tools.scaling import table

_NAME = r"[A-Za-z0-9][A-Za-z0-9._+-]*"
# Columns of the table of runs that a cell fills in itself; those that it does not may be axes.
_TAKEN = {*table.COLUMNS} - {"size", "vocabulary", "length", "seed"}


@dataclasses.dataclass(frozen=True)
class Hardware(Checked):
    """What a cell will run on, for the estimates of time and memory.

    Attributes:
      chip: a name of `chips.CHIPS`; "" is this machine.
      count: devices.
      utilisation: share of the chips' peak that training reaches; of this machine its rate is measured instead.
    """

    chip: Annotated[str, OneOf(("", *CHIPS))] = ""
    count: Annotated[int, Range(1, 2**20)] = 1
    utilisation: Annotated[float, Range(above=0, at_most=1)] = 0.4


@dataclasses.dataclass(frozen=True)
class GridConfig(Checked):
    """What a sweep's config file says.

    Attributes:
      base: a config file of `infinity-jax train`, with `:argument` or not. "{size}" and other axes' names in braces
        stand for the cell's labels.
      changes: "KEY=VALUE ..." for all cells, keys of the base config.
      axes: axis -> its labels in order, each "LABEL" or "LABEL: KEY=VALUE ...".
      tokenizers: that are trained first, into WORKDIR/tokenizers/LABEL: "LABEL: FILE KEY=VALUE ...", where FILE is a
        config of `infinity-jax train-tokenizer`. Cells use one by tokenizer={workdir}/tokenizers/LABEL.
      checkpoint: cells do not train but draw with this checkpoint, a folder or "bundled", and their own config.sample;
        "" trains.
      pictures: that are drawn after each cell with its config.sample, for EffNet-KID and retrieval; 0 draws none, as
        several processes must.
      hardware: see `Hardware`.
      compare: the axis whose labels an ablation compares; the others are repetitions. "" in a plain sweep.
      columns: columns of the table of runs that an ablation compares.
      paper: what the paper reports, one text for each label of `compare`.
      source: where in the paper.
    """

    base: Annotated[str, Unlimited("a config file")]
    axes: Any
    changes: Annotated[str, Unlimited("KEY=VALUE ...")] = ""
    tokenizers: tuple[Annotated[str, Unlimited("LABEL: FILE KEY=VALUE ...")], ...] = ()
    checkpoint: FilePath = ""
    pictures: WholeNumber = 0
    hardware: Hardware = Hardware()
    compare: Annotated[str, Unlimited("an axis, or nothing")] = ""
    columns: tuple[Annotated[str, Unlimited("a column of the table of runs")], ...] = ()
    paper: tuple[Annotated[str, Unlimited("text")], ...] = ()
    source: Annotated[str, Unlimited("text")] = ""

    def __post_init__(self):
        super().__post_init__()
        if not self.axes:
            raise UserError('a sweep needs axes, like config.axes.size = ("small: model.layers=2", "large")')
        for axis, labels in self.axes.items():
            if axis in _TAKEN or not re.fullmatch(_NAME, axis):
                raise UserError(
                    f"an axis cannot be named {axis!r}: it names a folder, and not another column of runs.csv; use "
                    "letters, digits and . _ + -, and none of that table's columns"
                )
            if isinstance(labels, str):
                raise UserError(f"axes.{axis} is the text {labels!r}; give labels, like ({labels!r},)")
            names = [_parse(text)[0] for text in labels]
            if not names or len(set(names)) < len(names):
                raise UserError(f"axes.{axis} has the labels {names}; give at least one, each once")
        if self.compare and self.compare not in self.axes:
            raise UserError(f"compare {self.compare!r} is no axis; the axes are {', '.join(self.axes)}")
        if self.pictures and self.pictures < kid.FEWEST:
            raise UserError(
                f"pictures is {self.pictures}; EffNet-KID takes {kid.FEWEST} or more, and 0 draws none"
            )


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
      name: "size=270k,seed=0", the name of its folder.
      labels: axis -> label.
      config: of `infinity-jax train`, a locked ConfigDict.
    """

    name: str
    labels: Mapping[str, str]
    config: Any


def load(path: str, overrides: Sequence[str] = (), workdir: str = "WORKDIR") -> tuple[GridConfig, list[Cell]]:
    """Reads the grid of a config file and its cells, the last axis running fastest.

    Args:
      workdir: of the sweep, what "{workdir}" in a change becomes.
    Raises:
      UserError: the file, or the config of a cell, has a mistake; the message names the cell.
    """
    values = config_files.load(path, overrides)
    hardware = from_dict(Hardware, values.get("hardware", {}), "hardware")
    grid = from_dict(GridConfig, {**values, "hardware": hardware}, "config")
    parsed = {axis: [_parse(text) for text in labels] for axis, labels in grid.axes.items()}
    cells = []
    for choice in itertools.product(*parsed.values()):
        labels = dict(zip(parsed, (label for label, _ in choice), strict=True))
        name = ",".join(f"{axis}={label}" for axis, label in labels.items())
        changes = [*grid.changes.split(), *(change for _, changes in choice for change in changes)]
        try:
            config = config_files.load(_filled(grid.base, labels), _flags(changes, workdir))
        except UserError as error:
            raise UserError(f"cell {name}: {error}") from error
        cells.append(Cell(name, labels, config))
    return grid, cells


def tokenizer_configs(grid: GridConfig) -> dict[str, Any]:
    """Reads the tokenizers that are trained first: label -> config of `infinity-jax train-tokenizer`."""
    configs = {}
    for text in grid.tokenizers:
        label, words = _parse(text)
        if not words:
            raise UserError(f'tokenizers {text!r} names no config file; write "{label}: FILE KEY=VALUE ..."')
        configs[label] = config_files.load(words[0], _flags(words[1:]))
    return configs


# Text, not Python values: a label and its changes are typed in a config as on the command line, and name a folder.
def _parse(text: str) -> tuple[str, list[str]]:
    """Splits a label from its changes "KEY=VALUE"."""
    label, _, changes = str(text).partition(":")
    if not re.fullmatch(_NAME, label):
        raise UserError(
            f"label {label!r} of {text!r} becomes a part of a folder's name: use letters, digits and . _ + -, "
            'like "270k: model.layers=2 model.width=64"'
        )
    return label, changes.split()


def _flags(changes: Sequence[str], workdir: str = "") -> list[str]:
    return [f"--config.{change.replace('{workdir}', workdir)}" for change in changes]


def _filled(base: str, labels: Mapping[str, str]) -> str:
    try:
        return base.format_map(labels)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"base {base!r} names {error}, which is no axis; the axes are {', '.join(labels)}"
        ) from error
