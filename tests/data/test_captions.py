"""Which caption a step sees, and its cleaning."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_jax.data import captions

LONG = 'One dog. Two cats! Three "birds?" Four fish.'


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a cat --ar 16:9 --v 5", "a cat"),
        ("  a\n cat\t", "a cat"),
        ("--ar 1:1", ""),
        ("well-known -- a dash", "well-known -- a dash"),
        ("pre--fix stays", "pre--fix stays"),
        ("a cat\n--no dogs", "a cat"),
    ],
)
def test_options_and_white_space_are_removed(raw, clean):
    assert captions.clean(raw) == clean


def test_first_sentences():
    assert [captions.first_sentences(LONG, n) for n in (1, 2, 4, 9)] == [
        "One dog.",
        "One dog. Two cats!",
        LONG,
        LONG,
    ]
    assert captions.sentences(LONG) == 4
    assert captions.sentences("no end") == captions.sentences("One. ") == 1


@given(st.text(alphabet="ab.!? ", min_size=1).filter(str.strip), st.integers(1, 9))
def test_a_cut_caption_is_a_beginning_and_never_empty(text, count):
    cut = captions.first_sentences(text, count)
    assert text.startswith(cut) and cut.strip()


def test_long_and_short_come_in_their_shares():
    both = {"long": ["L"], "short": ["S", "s"]}
    draw = random.Random(0)
    drawn = [captions.choose(both, 0.8, 0.0, draw) for _ in range(4000)]
    assert 0.78 < drawn.count("L") / 4000 < 0.82
    assert 0.4 < drawn.count("S") / (4000 - drawn.count("L")) < 0.6
    assert captions.choose({"short": ["S"]}, 1.0, 0.0, draw) == "S"
    assert captions.choose({"long": ["L"]}, 0.0, 0.0, draw) == "L"


def test_long_captions_are_cut_evenly_and_short_ones_never():
    draw = random.Random(0)
    drawn = [captions.choose({"long": [LONG]}, 1.0, 1.0, draw) for _ in range(2000)]
    counts = [captions.sentences(caption) for caption in drawn]
    assert all(0.2 < counts.count(n) / 2000 < 0.3 for n in (1, 2, 3, 4))
    assert captions.choose({"short": [LONG]}, 0.0, 1.0, draw) == LONG
