"""The section `data` of a config file that trains from prepared shards."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated

from infinity_jax import scales
from infinity_jax.data.pictures import FITS
from infinity_jax.errors import UserError
from infinity_jax.fields import Checked, OneOf, Share, Unlimited, WholeNumber

RECORDS = "records:"
_LIMIT = re.compile(r"\s*([A-Za-z_][\w./\- ]*?)\s*(>=|<=)\s*(-?[0-9]+(?:\.[0-9]+)?)\s*")


@dataclasses.dataclass(frozen=True)
class Limit:
    """A column and the least or most that a picture's number may be."""

    column: str
    least: float = -float("inf")
    most: float = float("inf")


@dataclasses.dataclass(frozen=True)
class DataConfig(Checked):
    """Which pictures and captions are trained on. From `validation` on keys are for prepared shards, "records:".

    Attributes:
      source: "emoji_captions", "emoji_styles", "scenes", "folder:PATH" or "records:DIR"; several prepared sets
        "records:DIR@WEIGHT,records:...", the weights are shares of what is seen.
      scales: pixel budget or small preset.
      fit: how a picture of other proportions is brought to a square: "crop" cuts what stands over, "pad" puts it whole
        on white, "stretch" distorts it; prepared shards are cropped, to the nearest aspect ratio.
      validation: another prepared set, for evaluation; "" is none.
      min_side: the least height and width in pixels of a picture.
      min_caption, max_caption: limits of the characters of a picture's longest caption; 0 is none.
      scores: limits of score columns, like "aesthetic>=5,watermark<=0.5"; a picture without the score is left out.
      long_captions: how often the long caption is taken of a picture that has both.
      cut_captions: how often of a long caption only the first sentences are kept, an even number from one to all.
    """

    source: Annotated[str, Unlimited("the name of a data set")]
    scales: Annotated[str, Unlimited("a pixel budget or small preset")]
    fit: Annotated[str, OneOf(tuple(FITS))] = "crop"
    validation: Annotated[str, Unlimited("prepared sets, or nothing")] = ""
    min_side: WholeNumber = 0
    min_caption: WholeNumber = 0
    max_caption: WholeNumber = 0
    scores: Annotated[str, Unlimited("limits of columns, or nothing")] = ""
    long_captions: Share = 0.8
    cut_captions: Share = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.fit != "crop" and self.source.startswith(RECORDS):
            raise UserError(
                f"data.fit is {self.fit!r}, and prepared shards are cropped to the nearest aspect ratio; leave it out"
            )
        if self.fit != "crop" and self.source == "scenes":
            raise UserError(f"data.fit is {self.fit!r}, and scenes are drawn at their size; leave it out")
        parse_limits(self.scores)
        if self.validation:
            parse_sets(self.validation, "data.validation")
        scales.make_schedule(self.scales)

    @property
    def for_records(self) -> list[str]:
        """The keys that are set and that only prepared shards have a use for."""
        keys = (field for field in dataclasses.fields(self) if field.name not in ("source", "scales", "fit"))
        return [f"data.{field.name}" for field in keys if getattr(self, field.name) != field.default]

    @property
    def limits(self) -> tuple[Limit, ...]:
        """All filters."""
        side = [Limit(column, float(self.min_side)) for column in ("height", "width") if self.min_side > 0]
        most = float(self.max_caption or "inf")
        caption = (
            [Limit("caption", float(self.min_caption), most)]
            if self.min_caption > 0 or self.max_caption > 0
            else []
        )
        return (*side, *caption, *parse_limits(self.scores))


def parse_limits(text: str) -> list[Limit]:
    """Reads "aesthetic>=5,watermark<=0.5", one text as columns have any name. UserError if it is not of that form."""
    limits = []
    for part in filter(str.strip, text.split(",")):
        match = _LIMIT.fullmatch(part)
        if match is None:
            raise UserError(
                f"data.scores {part!r} is not understood; write it like 'aesthetic>=5,watermark<=0.5'"
            )
        bound = {">=": "least", "<=": "most"}[match[2]]
        limits.append(Limit(match[1], **{bound: float(match[3])}))
    return limits


def parse_sets(source: str, key: str = "data.source") -> list[tuple[Path, float | None]]:
    """Reads "records:A@2,records:B@1" as folders with their weights, None where none is given.

    `key` is what the config calls it, for messages.

    Raises:
      UserError: another form, or weights for some and not for others.
    """
    sets = []
    for part in source.split(","):
        if not part.startswith(RECORDS):
            raise UserError(f"{key} {source!r}: {part!r} does not begin with {RECORDS!r}")
        match = re.fullmatch(r"(.+?)(?:@([0-9]*\.?[0-9]+))?", part.removeprefix(RECORDS))
        if match is None:
            raise UserError(f"{key} {source!r} names no folder; write records:DIR")
        sets.append((Path(match[1]).expanduser(), float(match[2]) if match[2] else None))
    if len({weight is None for _, weight in sets}) > 1:
        raise UserError(
            f"{key} {source!r} has weights for some sets only; give each one its @WEIGHT, or none"
        )
    return sets
