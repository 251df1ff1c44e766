"""Scale schedules: which sizes the picture's token maps have, from 1x1 to the last.

A schedule is a frozen, hashable value, so it can be a static argument of `jax.jit`.
"""

import dataclasses
import functools
import itertools
import math
import re

from infinity_jax.errors import UserError

# Portrait rows (height >= width) of the paper's Table 10; landscape ones are their transposes.
_TABLE_10 = {
    (1, 1): "1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64",
    (5, 4): "1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56",
    (4, 3): "1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54",
    (3, 2): "1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52",
    (7, 4): "1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48",
    (2, 1): "1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45",
    (5, 2): "1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40",
    (3, 1): "1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37",
}
# How many scales of Table 10 each pixel budget keeps (docs/spec.md section 1).
BUDGETS = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}
# For trying things out, not of the paper: 128x128 at stride 16, in all ratios.
SMALL_BUDGETS = {"0.02M": 5}
# Square presets for small pictures: pixels -> sizes of the scales at stride 8.
SMALL_PRESETS = {
    "32px": (1, 2, 3, 4),
    "64px": (1, 2, 3, 4, 6, 8),
    "64px_single": (8,),  # a tokenizer of one scale; train it with loss.scales "short"
    "96px": (1, 2, 3, 4, 6, 8, 12),
    "128px": (1, 2, 3, 4, 6, 8, 12, 16),
}
# Square presets of VAR at stride 16 (docs/spec_var.md section 1): name -> sizes of the scales.
VAR_PRESETS = {
    "var256": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    "var512": (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    "var1024": (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}
# "32px_of_64px": the first scales of "64px", up to 32 pixels. A name like any other preset's, for stages and folders.
_FIRST_SCALES = "px_of_"
# One alone is of one scale, and not of pixels.
_SIDES = re.compile(r"[1-9]\d{0,3}(-[1-9]\d{0,3})+|[1-9]\d?")
# Every size 1..16, then coarser steps: what the tokenizer trains on (docs/spec.md section 2).
_DENSE_SIZES = (*range(1, 17), 20, 24, 28, 32, 40, 48, 56, 64)


@dataclasses.dataclass(frozen=True)
class ScaleSchedule:
    """The token-map sizes of one picture, coarse to fine.

    Attributes:
      sizes: (height, width) of every scale in tokens; K entries.
      position_size: (height, width) that rotary positions refer to: the last scale of the
        whole preset, also where a budget keeps only its first scales (docs/spec.md section 4).
    """

    sizes: tuple[tuple[int, int], ...]
    position_size: tuple[int, int]

    def __post_init__(self):
        if not self.sizes:
            raise UserError("a scale schedule needs at least one scale; got none")
        for h, w in self.sizes:
            if h < 1 or w < 1:
                raise UserError(f"scale sizes must be at least 1x1; got {h}x{w}")

    def __str__(self) -> str:
        return " ".join(f"{h}x{w}" for h, w in self.sizes)

    @property
    def n_scales(self) -> int:
        """Number of scales, K."""
        return len(self.sizes)

    @property
    def last(self) -> tuple[int, int]:
        """(height, width) of the finest scale."""
        return self.sizes[-1]

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of each scale, h_k * w_k."""
        return tuple(h * w for h, w in self.sizes)

    @property
    def length(self) -> int:
        """Tokens of all scales together, L."""
        return sum(self.tokens)

    @property
    def offsets(self) -> tuple[int, ...]:
        """K + 1 numbers: scale k holds the tokens offsets[k] .. offsets[k + 1]."""
        return tuple(itertools.accumulate(self.tokens, initial=0))

    @property
    def scale_of_token(self) -> tuple[int, ...]:
        """The scale's number (0 .. K-1) of each of the L tokens."""
        return tuple(k for k, n in enumerate(self.tokens) for _ in range(n))

    def prefix(self, n_scales: int) -> "ScaleSchedule":
        """Keeps the first `n_scales` scales, with rotary positions still those of the whole preset."""
        if not 1 <= n_scales <= self.n_scales:
            raise UserError(f"asked for the first {n_scales} scales; this schedule has 1 to {self.n_scales}")
        return dataclasses.replace(self, sizes=self.sizes[:n_scales])

    def times(self, factor: int) -> "ScaleSchedule":
        """Multiplies every size by `factor` (the tokenizer's side of a patchified model, docs/spec.md section 7)."""
        return ScaleSchedule(
            tuple((h * factor, w * factor) for h, w in self.sizes),
            (self.position_size[0] * factor, self.position_size[1] * factor),
        )


@functools.cache
def _table_10() -> dict[tuple[int, int], tuple[tuple[int, int], ...]]:
    """Reads the table: aspect ratio (height, width) -> 13 sizes, for all 15 ratios."""
    table = {}
    for (h, w), text in _TABLE_10.items():
        sizes = tuple((int(a), int(b)) for a, b in (size.split("x") for size in text.split()))
        table[h, w] = sizes
        table[w, h] = tuple((b, a) for a, b in sizes)
    return table


def aspect_ratios() -> tuple[str, ...]:
    """Lists the 15 known aspect ratios as "height:width", tallest first."""
    ratios = sorted(_table_10(), key=lambda ratio: -ratio[0] / ratio[1])
    return tuple(f"{h}:{w}" for h, w in ratios)


def parse_aspect_ratio(text: str) -> tuple[int, int]:
    """Reads "height:width" as (height, width) in lowest terms. Raises UserError if it is not of that form."""
    parts = str(text).split(":")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(
            f"aspect ratio {text!r} is not of the form HEIGHT:WIDTH with whole numbers, like 1:1 or 3:2"
        )
    h, w = (int(part) for part in parts)
    divisor = math.gcd(h, w)
    return h // divisor, w // divisor


def nearest_aspect_ratio(height: int, width: int) -> str:
    """Finds the known ratio that is nearest to height/width, as "height:width" (docs/spec.md section 1)."""
    h, w = min(_table_10(), key=lambda ratio: abs(ratio[0] / ratio[1] - height / width))
    return f"{h}:{w}"


def make_schedule(preset: str, aspect_ratio: str = "1:1") -> ScaleSchedule:
    """Makes the schedule of a budget ("0.06M", "0.25M", "0.60M", "1M") or a small preset ("64px").

    Args:
      preset: a name of `BUDGETS` or `SMALL_BUDGETS` (any of the 15 aspect ratios), or of `SMALL_PRESETS` or
        `VAR_PRESETS` (square only); the first scales of a small preset, with its positions, as a budget has those of
        Table 10: "32px_of_64px"; or the sides of square scales: "1-2-3-5-8", or "32".
      aspect_ratio: "height:width".
    Raises:
      UserError: unknown preset or ratio; it names those that exist.
    """
    ratio = parse_aspect_ratio(aspect_ratio)
    if is_square(preset):
        if ratio != (1, 1):
            raise UserError(
                f"preset {preset!r} is square: aspect ratio {aspect_ratio!r} is unknown to it; use 1:1"
            )
        return _square_schedule(preset)
    scales_of = BUDGETS | SMALL_BUDGETS
    if preset not in scales_of:
        known = ", ".join((*scales_of, *SMALL_PRESETS, *VAR_PRESETS))
        raise UserError(f"unknown scale preset {preset!r}; known: {known}")
    if ratio not in _table_10():
        raise UserError(f"unknown aspect ratio {aspect_ratio!r}; known: {', '.join(aspect_ratios())}")
    sizes = _table_10()[ratio]
    return ScaleSchedule(sizes, sizes[-1]).prefix(scales_of[preset])


def schedule_of_ratio(preset: str, ratio: str) -> ScaleSchedule:
    """Makes the schedule for pictures of a ratio: a square preset has one for all, and they are cropped."""
    return make_schedule(preset, "1:1" if is_square(preset) else ratio)


def is_square(preset: str) -> bool:
    """Tells whether a preset is for square pictures alone."""
    named = positions_preset(preset) in SMALL_PRESETS | VAR_PRESETS
    return named or _SIDES.fullmatch(preset) is not None


def positions_preset(preset: str) -> str:
    """Finds the preset whose last scale the positions of `preset` refer to: "1M" for all budgets, else mostly itself.

    A model and a tokenizer for one of the presets with the same one can change to another.
    """
    if preset in BUDGETS:
        return "1M"
    return preset.rpartition(_FIRST_SCALES)[2]


def _square_schedule(preset: str) -> ScaleSchedule:
    """Makes the schedule of a small preset or of its first scales. Raises UserError if no scale has so many pixels."""
    pixels, _, all_scales = preset.rpartition(_FIRST_SCALES)
    named = (SMALL_PRESETS | VAR_PRESETS).get(all_scales)
    sizes = tuple((n, n) for n in named or map(int, preset.split("-")))
    schedule = ScaleSchedule(sizes, sizes[-1])
    if all_scales == preset:
        return schedule
    ends = [str(8 * n) for n, _ in sizes]
    if pixels not in ends:
        raise UserError(f"{all_scales} has no scale of {pixels or 'no'} pixels; there are: {', '.join(ends)}")
    return schedule.prefix(ends.index(pixels) + 1)


def dense_schedule(last: int) -> ScaleSchedule:
    """Makes the tokenizer's square training schedule up to `last`: every size to 16, then coarser.

    docs/spec.md section 2.
    """
    if last not in _DENSE_SIZES:
        raise UserError(
            f"no dense schedule ends in {last}x{last}; possible ends: {', '.join(map(str, _DENSE_SIZES))}"
        )
    sizes = tuple((n, n) for n in _DENSE_SIZES if n <= last)
    return ScaleSchedule(sizes, sizes[-1])
