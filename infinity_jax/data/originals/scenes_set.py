"""Scenes, drawn once and kept (see `infinity_jax.data.scenes`)."""

import dataclasses
import re
from collections.abc import Iterator

from infinity_jax.data.originals.rows import Row, part_size
from infinity_jax.data.records import SPLITS
from infinity_jax.data.scenes.captions import caption
from infinity_jax.data.scenes.description import describe
from infinity_jax.data.scenes.source import png_of
from infinity_jax.errors import UserError

FORM = "scenes:[SPLIT/]COUNT[@HEIGHTxWIDTH]"
_PLACE = re.compile(rf"(?:({'|'.join(SPLITS)})/)?([0-9]{{1,9}})(?:@([0-9]{{1,4}})x([0-9]{{1,4}}))?")
_LARGEST_SIDE = 1024


@dataclasses.dataclass(frozen=True)
class ScenesPart:
    """Neighbouring scenes of a split, and at which size they are drawn."""

    split: str
    numbers: range
    height: int
    width: int

    def name(self) -> str:
        return f"scenes {self.split} {self.numbers.start} to {self.numbers.stop - 1} at {self.height}x{self.width}"

    def rows(self) -> Iterator[Row]:
        for number in self.numbers:
            scene = describe(0, self.split, number)
            yield Row(
                f"{self.split}/{number}",
                png_of(scene, self.height, self.width),
                {"short": [caption(scene)]},
                {},
            )


def find_parts(place: str) -> list[ScenesPart]:
    """Reads "20000", "20000@96x160" or "validation/256@64x64"; 128x128 pixels of the train split by default.

    Raises:
      UserError: another form, no scene, or a size that is none.
    """
    match = _PLACE.fullmatch(place)
    if match is None or int(match[2]) == 0:
        raise UserError(
            f"scenes:{place} is not of the form {FORM}, like scenes:20000 or scenes:validation/256@64x64"
        )
    height, width = int(match[3] or 128), int(match[4] or 128)
    if not (8 <= height <= _LARGEST_SIDE and 8 <= width <= _LARGEST_SIDE):
        raise UserError(f"scenes:{place}: {height}x{width} pixels; a side is from 8 to {_LARGEST_SIDE}")
    count = int(match[2])
    size = part_size(count)
    return [
        ScenesPart(match[1] or "train", range(i, min(count, i + size)), height, width)
        for i in range(0, count, size)
    ]
