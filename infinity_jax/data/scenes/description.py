"""What is in a scene: drawn from (seed, split, number) alone, the same in every process and version of NumPy."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from infinity_jax.data.records import SPLITS
from infinity_jax.data.scenes import vocabulary
from infinity_jax.data.scenes.vocabulary import COLOURS, COUNTS, FLOORS, MATERIALS, OBJECTS, RELATIONS, TASKS
from infinity_jax.runtime import seeds

MOST_OBJECTS = 4
# Numbers of an object and of what is around the objects, see `Scene.numbers`.
OF_OBJECT, OF_SURROUNDINGS = 9, 7
NUMBERS = MOST_OBJECTS * OF_OBJECT + OF_SURROUNDINGS
_T = TypeVar("_T")
# Of GenEval's tasks the pair of words that is a held-out one in the split `compositions`.
_UNSEEN = {
    "single_object": "object, floor",
    "two_object": "object, object",
    "counting": "count, object",
    "colors": "object, colour",
    "position": "object, object",
    "color_attr": "object, colour",
}


@dataclasses.dataclass(frozen=True)
class Thing:
    """An object on the floor.

    Attributes:
      kind, colour, material: words.
      x, z: its place: to the right, and towards the camera.
      size: about half of its height.
      turn: about the vertical, in radians.
    """

    kind: str
    colour: str
    material: str
    x: float
    z: float
    size: float
    turn: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """A scene, and what its caption says of it.

    Attributes:
      task: one of GenEval's.
      things: one to four; of two, the caption names the first one first.
      relation: how the first of two stands to the second, "" where the caption tells nothing of it.
      floor: a word.
      light: direction of the light: about the vertical, and above the floor, in radians.
      camera: likewise, and its distance.
      shift: of the floor's pattern.
      wording: numbers in [0, 1) that choose the caption's words.
    """

    task: str
    things: tuple[Thing, ...]
    relation: str
    floor: str
    light: tuple[float, float]
    camera: tuple[float, float, float]
    shift: float
    wording: tuple[float, ...]

    def numbers(self) -> Float[np.ndarray, " P"]:
        """Writes the scene as float32 [NUMBERS], what `tracer.render` draws.

        Of each object kind (-1 is none), red, green, blue, material, x, z, size, turn; then floor, light (2),
        camera (3), shift.
        """
        rows = np.full((MOST_OBJECTS, OF_OBJECT), -1.0, np.float32)
        for row, thing in zip(rows, self.things, strict=False):
            row[0] = OBJECTS.index(thing.kind)
            row[1:4] = COLOURS[thing.colour]
            row[4:] = MATERIALS.index(thing.material), thing.x, thing.z, thing.size, thing.turn
        around = [FLOORS.index(self.floor), *self.light, *self.camera, self.shift]
        return np.concatenate([rows.ravel(), np.array(around, np.float32)])

    def pairs(self) -> set[tuple[str, str, str]]:
        """Lists the pairs of words that the scene shows, as (kind of pair, word, word)."""
        found = {("object, colour", thing.kind, thing.colour) for thing in self.things}
        found |= {("object, floor", thing.kind, self.floor) for thing in self.things}
        kinds = sorted({thing.kind for thing in self.things}, key=OBJECTS.index)
        found |= {("object, object", a, b) for i, a in enumerate(kinds) for b in kinds[i + 1 :]}
        for kind in kinds:
            number = sum(thing.kind == kind for thing in self.things)
            if number > 1:
                found.add(("count, object", COUNTS[number], kind))
        return found

    def is_unseen(self) -> bool:
        """Tells whether it shows a pair that never occurs in training."""
        return any(vocabulary.is_held_out(*pair) for pair in self.pairs())


class _Draws:
    """Random numbers of one scene: raw ones of PCG64, as what NumPy makes of them may change."""

    def __init__(self, seed: int, split: str, number: int):
        self._raw = np.random.PCG64(
            np.random.SeedSequence([seeds.seed_of("scenes", seed), number, SPLITS.index(split)])
        )

    def uniform(self, least: float = 0.0, most: float = 1.0) -> float:
        return least + (most - least) * (int(self._raw.random_raw()) >> 11) * 2.0**-53

    def one_of(self, choices: Sequence[_T]) -> _T:
        return choices[int(self.uniform() * len(choices))]


def describe(seed: int, split: str, number: int) -> Scene:
    """Draws scene `number` of a split: a pure function.

    Of "train" and "validation" no scene shows a held-out pair (`vocabulary.held_out`); of "compositions" every one
    shows that of its task: an object and a floor, two objects, a count, or an object and its colour.
    """
    draws = _Draws(seed, split, number)
    task = TASKS[number % len(TASKS)] if split == "compositions" else draws.one_of(TASKS)
    unseen = split == "compositions"
    while True:
        scene = _draw(draws, task, unseen)
        if unseen or not scene.is_unseen():
            return scene


def _draw(draws: _Draws, task: str, unseen: bool) -> Scene:
    kinds, floor, colours = _words(draws, task, unseen)
    relation = draws.one_of(RELATIONS) if task == "position" else ""
    things: tuple[Thing, ...] | None = None
    while things is None:
        things = _placed(draws, kinds, colours, relation)
    return Scene(
        task=task,
        things=things,
        relation=relation,
        floor=floor,
        light=(draws.uniform(-1.2, 1.2), draws.uniform(0.8, 1.15)),
        camera=(draws.uniform(-0.15, 0.15), draws.uniform(0.5, 0.65), draws.uniform(6.2, 7.0)),
        shift=draws.uniform(),
        wording=tuple(draws.uniform() for _ in range(4)),
    )


def _words(draws: _Draws, task: str, unseen: bool) -> tuple[list[str], str, list[str]]:
    """Draws the objects' kinds, the floor and the objects' colours; where it is asked for, the task's held-out pair."""
    pair = draws.one_of(sorted(vocabulary.held_out(_UNSEEN[task]))) if unseen else ("", "")
    floor = pair[1] if unseen and task == "single_object" else draws.one_of(FLOORS)
    if task == "counting":
        number = draws.one_of(list(COUNTS))
        kind = draws.one_of(OBJECTS)
        if unseen:
            number, kind = next(n for n, word in COUNTS.items() if word == pair[0]), pair[1]
        same = draws.one_of(list(COLOURS))
        colours = (
            [same] * number if draws.uniform() < 0.5 else [draws.one_of(list(COLOURS)) for _ in range(number)]
        )
        return [kind] * number, floor, colours
    first = pair[0] if unseen else draws.one_of(OBJECTS)
    colours = [draws.one_of(list(COLOURS)) for _ in range(2)]
    if unseen and _UNSEEN[task] == "object, colour":
        colours[0] = pair[1]
    if task in ("single_object", "colors"):
        return [first], floor, colours[:1]
    second = draws.one_of([kind for kind in OBJECTS if kind != first])
    if unseen and _UNSEEN[task] == "object, object":
        second = pair[1]
        if draws.uniform() < 0.5:
            first, second = second, first
    if colours[0] == colours[1] and task == "color_attr":
        colours[1] = draws.one_of([colour for colour in COLOURS if colour != colours[0]])
    return [first, second], floor, colours


def _placed(draws: _Draws, kinds: list[str], colours: list[str], relation: str) -> tuple[Thing, ...] | None:
    """Draws places for objects; None where they would hide each other, or do not stand as the relation says."""
    smaller = 1.0 if len(kinds) == 1 else 0.85 if len(kinds) == 2 else 0.68
    things = [
        Thing(
            kind,
            colour,
            draws.one_of(MATERIALS),
            draws.uniform(-1.5, 1.5) if len(kinds) > 1 else draws.uniform(-0.6, 0.6),
            draws.uniform(-1.2, 1.2) if len(kinds) > 1 else draws.uniform(-0.4, 0.6),
            smaller * draws.uniform(0.7, 0.9),
            draws.uniform(0.0, 2 * math.pi),
        )
        for kind, colour in zip(kinds, colours, strict=True)
    ]
    for i, a in enumerate(things):
        for b in things[i + 1 :]:
            # What stands behind is seen above: a distance in depth shows as half of it.
            if math.hypot(a.x - b.x, 0.75 * (a.z - b.z)) < 1.05 * (a.size + b.size):
                return None
    if relation:
        (a, b), right, nearer = things, things[0].x - things[1].x, things[0].z - things[1].z
        across = relation in ("left of", "right of")
        along = right if across else nearer
        if abs(nearer if across else right) > 0.5 * abs(along):
            return None
        wanted = {"left of": -1, "right of": 1, "in front of": 1, "behind": -1}[relation]
        if along * wanted < 0:
            things = [dataclasses.replace(a, x=b.x, z=b.z), dataclasses.replace(b, x=a.x, z=a.z)]
    return tuple(things)
