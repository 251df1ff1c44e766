"""Training batches of one resolution each, from one row of records.

docs/spec.md section 2: stage 2 of the tokenizer.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from jaxtyping import Int

from infinity_jax import scales
from infinity_jax.data import batches as pipeline
from infinity_jax.data.pictures import FITS
from infinity_jax.errors import UserError
from infinity_jax.fields import Checked, OneOf, Range, Share, Unlimited
from infinity_jax.runtime import seeds


@dataclasses.dataclass(frozen=True)
class PictureConfig(Checked):
    """Which pictures a tokenizer is trained on.

    Attributes:
      source: "emoji_captions", "emoji_styles", "scenes", "folder:PATH" or "records:DIR".
      scales: pixel budget or small preset.
      mix: batch size of each resolution to train on, like "64px=16,96px=8", each a name as in `scales`; "" trains on
        `scales` alone. Each step has one of them.
      fit: how a picture of other proportions is brought to a square: "crop" cuts what stands over, "pad" puts it whole
        on white, "stretch" distorts it.
      enlarge: a picture's shorter side becomes so many times the square's, which is cut at a random place; 1 cuts the
        middle. Only with fit "crop".
      flip: share of the pictures that are mirrored left to right, drawn anew each time one is read.
    """

    source: Annotated[str, Unlimited("the name of a data set")]
    scales: Annotated[str, Unlimited("a pixel budget or small preset")]
    mix: Annotated[str, Unlimited("RESOLUTION=BATCH_SIZE,..., or nothing")] = ""
    fit: Annotated[str, OneOf(tuple(FITS))] = "crop"
    enlarge: Annotated[float, Range(1, 4)] = 1.0
    flip: Share = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.source == "scenes" and (self.fit, self.enlarge, self.flip) != ("crop", 1.0, 0.0):
            raise UserError(
                f"data.fit {self.fit!r}, data.enlarge {self.enlarge} and data.flip {self.flip}: scenes are drawn at "
                "their size, and no two are equal; leave these out"
            )
        if self.enlarge != 1 and self.fit != "crop":
            raise UserError(
                f"data.enlarge is {self.enlarge} and data.fit {self.fit!r}; a random place is cut with fit 'crop' only"
            )
        scales.make_schedule(self.scales)


@dataclasses.dataclass(frozen=True)
class ResolutionMix:
    """Which resolution each step has: drawn with equal chances from the seed alone, so that all processes agree.

    Attributes:
      sides: pixels along a side of each resolution's square pictures.
      batch_sizes: pictures of a whole batch of each.
      seed: of the draw.
      steps: length of the run; a longer run begins with the same steps.
    """

    sides: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    seed: int
    steps: int

    @functools.cached_property
    def draws(self) -> Int[np.ndarray, " steps"]:
        """The number of each step's resolution, int64."""
        uniform = np.random.default_rng(seeds.seed_of("resolution", self.seed)).random(self.steps)
        return (uniform * len(self.sides)).astype(np.int64)

    @functools.cached_property
    def starts(self) -> Int[np.ndarray, " n"]:
        """How many pictures the steps before each step have read, int64."""
        return np.concatenate([[0], np.cumsum(np.array(self.batch_sizes)[self.draws])])

    def batch_size_at(self, step: int) -> int:
        """Pictures of a step's batch, counted from step 0."""
        return self.batch_sizes[self.draws[step]]

    def side_at(self, step: int) -> int:
        """Pixels along a side of a step's pictures, counted from step 0."""
        return self.sides[self.draws[step]]


def batches(
    source: pipeline.RandomAccess,
    mix: ResolutionMix,
    first_step: int,
    decode: Callable[[Any, int], Mapping[str, Any]],
    rows_of: Callable[[int], Sequence[int] | np.ndarray],
) -> Iterator[pipeline.Batch]:
    """Yields the batches of a run from step `first_step` to its end, as `batches.batches` orders them.

    Args:
      decode: (record, side) -> arrays. The record also has `place`, its number among all that the run reads.
      rows_of: batch size -> the rows of it that are read here.
    """
    records = pipeline.endless_records(source, mix.seed)

    def batch(step: int) -> pipeline.Batch:
        first, side = int(mix.starts[step]), mix.side_at(step)
        rows = rows_of(mix.batch_size_at(step))
        places = [first + int(row) for row in rows]
        read: list[Any] = [records[place] for place in places]
        return pipeline.stack(
            [decode({**record, "place": p}, side) for record, p in zip(read, places, strict=True)]
        )

    return pipeline.prefetched(batch, range(first_step, mix.steps))
