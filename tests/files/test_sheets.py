"""Captions under pictures: whatever the text is, it is wrapped in a moment."""

import time

import numpy as np
import pytest

from infinity_jax.files import sheets

HOSTILE = {
    "a word": "a" * 3_000_000,
    "thin letters": "i" * 100_000,
    "no spaces": "漢字仮名" * 200_000,
    "combining": "e" + "\u0301" * 1_000_000,
    "right to left": "שלום" * 100_000 + "\u202e" * 1000,
    "joined": "ا" * 1_000_000,
    "marks": "\u202e\u2066" * 1000 + "abc",
    "control": "\x1b[31m\x00\x07" * 100_000,
    "surrogates": "\ud800" * 1000,
    "words": "ab " * 1_000_000,
    "white space": " \n" * 1_000_000 + "x",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_long_captions_are_wrapped_in_a_moment(name, tmp_path):
    font = sheets._style("DejaVuSans.ttf", 12, (0, 0, 0)).font
    begin = time.process_time()
    lines = sheets._wrapped(HOSTILE[name], 144, font, 4)
    assert time.process_time() - begin < 0.5
    assert len(lines) <= 4 and all(font.getlength(line) <= 144 for line in lines)
    picture = np.zeros((1, 8, 8, 3), np.uint8)
    text = HOSTILE[name]
    sheets.picture_sheet(picture, [text], tmp_path / "a.png", title=text, footer=text)
    sheets.comparison_sheet([picture], [text], tmp_path / "b.png", captions=[text])
    assert time.process_time() - begin < 3


def test_lines_break_between_words_and_within_long_ones():
    font = sheets._style("DejaVuSans.ttf", 12, (0, 0, 0)).font
    assert sheets._wrapped("a red heart, and a green apple", 90, font, 4) == [
        "a red heart,",
        "and a green",
        "apple",
    ]
    assert sheets._wrapped("a red heart, and a green apple", 90, font, 2) == ["a red heart,", "and a green…"]
    assert sheets._wrapped("see Donaudampfschifffahrt now", 90, font, 4)[0] == "see"
    assert sheets._wrapped("cafe\u0301 e\u0301\u0301\u0301\u0301", 90, font, 4) == [
        "cafe\u0301 e\u0301\u0301"
    ]
    assert sheets._wrapped("", 90, font, 4) == []
