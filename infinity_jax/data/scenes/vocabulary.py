"""The words of the scenes, and the pairs of them that never occur together in training."""

import functools
import hashlib
import itertools
from collections.abc import Sequence

OBJECTS = ("ball", "cube", "cylinder", "cone", "ring", "capsule", "gem")
# sRGB in 0..1.
COLOURS = {
    "red": (0.80, 0.09, 0.09),
    "orange": (0.95, 0.45, 0.05),
    "yellow": (0.95, 0.80, 0.10),
    "green": (0.13, 0.55, 0.17),
    "blue": (0.10, 0.25, 0.80),
    "purple": (0.45, 0.15, 0.65),
    "pink": (0.95, 0.50, 0.68),
    "brown": (0.42, 0.24, 0.12),
    "black": (0.06, 0.06, 0.07),
    "white": (0.93, 0.93, 0.93),
}
MATERIALS = ("matte", "shiny", "metal")
FLOORS = ("stone", "wooden", "checkered", "sand", "tiled")
COUNTS = {2: "two", 3: "three", 4: "four"}
RELATIONS = ("left of", "right of", "in front of", "behind")
# GenEval's (arXiv 2310.11513).
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

HELD_OUT_SHARE = 0.1
# Kinds of pairs, each of which lacks some of its pairs in training.
PAIRS: dict[str, Sequence[tuple[str, str]]] = {
    "object, colour": tuple(itertools.product(OBJECTS, COLOURS)),
    "object, object": tuple(itertools.combinations(OBJECTS, 2)),
    "count, object": tuple(itertools.product(COUNTS.values(), OBJECTS)),
    "object, floor": tuple(itertools.product(OBJECTS, FLOORS)),
}


@functools.cache
def held_out(kind: str) -> frozenset[tuple[str, str]]:
    """Lists the pairs of a kind that never occur in training: the tenth whose names have the smallest hashes."""
    pairs = sorted(PAIRS[kind], key=lambda pair: hashlib.sha256("/".join((kind, *pair)).encode()).digest())
    return frozenset(pairs[: max(1, round(HELD_OUT_SHARE * len(pairs)))])


def is_held_out(kind: str, first: str, second: str) -> bool:
    """Tells whether two words are a pair that never occurs in training, two objects in either order."""
    pairs = held_out(kind)
    return (first, second) in pairs or (kind == "object, object" and (second, first) in pairs)
