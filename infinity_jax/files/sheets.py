"""Picture sheets: many pictures with their prompts on one white PNG."""

import bisect
import importlib.util
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from infinity_jax.files import pictures

MARGIN = 28
GAP = 18
CAPTION_LINES = 4
# Pixels of the narrowest letters that captions are made of, on average; and marks on one letter.
_NARROWEST, _MOST_MARKS = 2, 2
PICTURE_FRAME = (226, 226, 226)
INK, FAINT_INK = (34, 34, 34), (120, 120, 120)

# Sizes are unnamed: the pictures of a sheet may differ in size, and its last row may be shorter.
Picture = UInt8[np.ndarray, "_ _ 3"]
Pictures = Sequence[Picture] | UInt8[np.ndarray, "_ _ _ 3"]


class _Style(NamedTuple):
    """A font, its colour and the distance from line to line in pixels."""

    font: ImageFont.FreeTypeFont
    colour: tuple[int, int, int]
    line: int


def _style(file: str, size: int, colour: tuple[int, int, int]) -> _Style:
    # Pillow's own font lacks accented letters; DejaVu comes with matplotlib and covers most scripts. matplotlib itself,
    # which takes a while to import, is not needed for that.
    package = importlib.util.find_spec("matplotlib")
    assert package is not None and package.origin is not None
    path = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / file
    return _Style(ImageFont.truetype(str(path), size), colour, round(size * 1.3))


class _Text:
    """A text wrapped to a width, with the width and height that it takes in pixels (0 when empty)."""

    def __init__(self, text: str, width: int, style: _Style, most_lines: int = CAPTION_LINES) -> None:
        self.lines, self.style = _wrapped(text, width, style.font, most_lines), style
        self.height = len(self.lines) * style.line
        self.width = max((round(style.font.getlength(line)) for line in self.lines), default=0)

    def draw(self, draw: ImageDraw.ImageDraw, x: int, y: int, anchor: str = "la") -> None:
        for i, line in enumerate(self.lines):
            draw.text((x, y + i * self.style.line), line, self.style.colour, self.style.font, anchor)


def picture_sheet(
    images: Pictures,
    captions: Sequence[str],
    path: Path,
    *,
    columns: int = 8,
    scale: int = 2,
    title: str = "",
    footer: str = "",
) -> None:
    """Writes a PNG of pictures in reading order, each with its caption under it.

    Takes uint8 RGB pictures [H, W, 3] (or one array [N, H, W, 3]), which may differ in size; each is enlarged by
    the whole number `scale` without smoothing. `title` goes on top, `footer` (attributions) at the bottom. A long
    caption is wrapped to at most four lines and then cut with an ellipsis. The file appears whole or not at all.

    Raises ValueError for no pictures or another number of captions.
    """
    _check(images, captions)
    columns = min(columns, len(images))
    starts = range(0, len(images), columns)
    rows = [images[start : start + columns] for start in starts]
    _write_grid(path, rows, [captions[start : start + columns] for start in starts], [], scale, title, footer)


def comparison_sheet(
    rows: Sequence[Pictures],
    row_names: Sequence[str],
    path: Path,
    *,
    captions: Sequence[str] | None = None,
    scale: int = 2,
    title: str = "",
    footer: str = "",
) -> None:
    """Writes a PNG with rows of pictures under each other, such as real and reconstructed, and a name for each row.

    Each row has the same number of pictures; `captions`, one per column, go under the last row. For the rest see
    `picture_sheet`. Raises ValueError for rows, names or captions that do not fit together.
    """
    if len(rows) != len(row_names) or len({len(row) for row in rows}) != 1:
        raise ValueError(
            f"rows of {[len(row) for row in rows]} pictures do not fit {len(row_names)} row names"
        )
    under = list(captions) if captions is not None else [""] * len(rows[0])
    _check(rows[0], under)
    empty = [""] * len(under)
    _write_grid(path, rows, [empty] * (len(rows) - 1) + [under], row_names, scale, title, footer)


def _check(images: Pictures, captions: Sequence[str]) -> None:
    if not len(images) or len(images) != len(captions):
        raise ValueError(
            "a sheet takes at least one picture and a caption for each, "
            f"got {len(images)} pictures and {len(captions)} captions"
        )


def _write_grid(
    path: Path,
    rows: Sequence[Pictures],
    captions: Sequence[Sequence[str]],
    row_names: Sequence[str],
    scale: int,
    title: str,
    footer: str,
) -> None:
    cell_h, cell_w = (scale * max(image.shape[axis] for row in rows for image in row) for axis in (0, 1))
    caption_style = _style("DejaVuSans.ttf", max(11, min(13, cell_w // 9)), INK)
    under = [[_Text(caption, cell_w + GAP - 6, caption_style) for caption in row] for row in captions]
    names = [_Text(name, 130, _style("DejaVuSans.ttf", 14, INK)) for name in row_names]
    name_w = max((text.width for text in names), default=0)
    left = MARGIN + (name_w + GAP if names else 0)
    width = max(left + len(rows[0]) * (cell_w + GAP) - GAP + MARGIN, 320)
    heading = _Text(title, width - 2 * MARGIN, _style("DejaVuSans-Bold.ttf", 20, INK))
    closing = _Text(footer, width - 2 * MARGIN, _style("DejaVuSans.ttf", 11, FAINT_INK))

    caption_heights = [max(text.height for text in texts) for texts in under]
    row_heights = [cell_h + GAP + (height + 8 if height else 0) for height in caption_heights]
    top = MARGIN + (heading.height + GAP if heading.height else 0)
    bottom = top + sum(row_heights)
    height = bottom - GAP + MARGIN + (closing.height + GAP if closing.height else 0)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    heading.draw(draw, MARGIN, MARGIN)
    closing.draw(draw, MARGIN, bottom)
    for i, row in enumerate(rows):
        if names:
            names[i].draw(draw, MARGIN, top + (cell_h - names[i].height) // 2)
        for j, image in enumerate(row):
            x = left + j * (cell_w + GAP)
            # In the middle of its cell, with a hairline, as many pictures are white.
            h, w = image.shape[0] * scale, image.shape[1] * scale
            at_x, at_y = x + (cell_w - w) // 2, top + (cell_h - h) // 2
            enlarged = Image.fromarray(np.asarray(image)).resize((w, h), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (at_x, at_y))
            draw.rectangle((at_x - 1, at_y - 1, at_x + w, at_y + h), outline=PICTURE_FRAME)
            under[i][j].draw(draw, x + cell_w // 2, top + cell_h + 8, "ma")
        top += row_heights[i]
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures.write_png(sheet, path, smallest=True)


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont, most_lines: int) -> list[str]:
    """Lines no wider than `width` pixels; wider words are broken, and an ellipsis stands for what is left over.

    Its time does not depend on the text's length: of a line no more is looked at than could stand there.
    """
    most = width // _NARROWEST + 1
    # One line more shows that something is left over. What is cut here may be white space, so twice as much is kept.
    rest = _drawable(text[: 2 * (most_lines + 1) * most])
    lines: list[str] = []
    while rest and len(lines) <= most_lines:
        fits = _fitting(rest[:most], width, font)
        if fits < len(rest) and rest[fits] != " " and " " in rest[:fits]:
            fits = rest[:fits].rindex(" ")
        lines.append(rest[:fits].rstrip())
        rest = rest[fits:].lstrip()
    if len(lines) > most_lines:
        last = lines[most_lines - 1]
        last = last[: _fitting(last + "…", width, font, end="…")]
        lines = [*lines[: most_lines - 1], last.rstrip(" ,.;") + "…"]
    return lines


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont, end: str = "") -> int:
    """Counts the first characters of a text that are no wider than `width` together with `end`, at least 1."""
    counts = range(1, len(text) + 1)
    return max(1, bisect.bisect_right(counts, width, key=lambda count: font.getlength(text[:count] + end)))


def _drawable(text: str) -> str:
    """Makes single spaces of white space, and leaves out what has no place in a line of its own.

    That is: control characters, marks of direction and halves of surrogate pairs, and combining characters beyond two
    in a row, of which thousands may stand over one letter.
    """
    kept: list[str] = []
    marks = 0
    for character in " ".join(text.split()):
        kind = unicodedata.category(character)
        marks = marks + 1 if kind.startswith("M") else 0
        if kind not in ("Cc", "Cf", "Cs") and marks <= _MOST_MARKS:
            kept.append(character)
    return "".join(kept)
