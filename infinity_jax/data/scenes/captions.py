"""A scene's caption: what it shows of its task, in one of several wordings."""

from infinity_jax.data.scenes.description import Scene, Thing
from infinity_jax.data.scenes.vocabulary import COUNTS, OBJECTS

_OPENINGS = ("", "", "a photo of ", "a picture of ")
_INVERSE = {"left of": "right of", "right of": "left of", "in front of": "behind", "behind": "in front of"}
_SIDES = {"left of": ("left of", "to the left of"), "right of": ("right of", "to the right of")}
# How often a caption names what its task does not ask for.
_FLOOR_NAMED, _MATERIAL_NAMED = 0.3, 0.3


def caption(scene: Scene) -> str:
    """Writes a caption, like "a photo of a red ball left of a metal cube on a wooden floor".

    Colours are named by the tasks colors and color_attr alone; a material of a single object, and the floor, are
    named in three of ten captions; the floor is always where a single object makes an unseen pair with it.
    """
    opening, order, floor, material = scene.wording
    first, *others = scene.things
    if scene.task == "counting":
        words = f"{COUNTS[len(scene.things)]} {first.kind}s"
    elif not others:
        words = _one(first, scene.task == "colors", material < _MATERIAL_NAMED)
    else:
        words = _two(scene, first, others[0], order)
    named = floor < _FLOOR_NAMED or (scene.task == "single_object" and scene.is_unseen())
    where = f" on a {scene.floor} floor" if named else ""
    return f"{_OPENINGS[int(opening * len(_OPENINGS))]}{words}{where}"


def _two(scene: Scene, first: Thing, second: Thing, order: float) -> str:
    a, b = (_one(thing, scene.task == "color_attr") for thing in (first, second))
    if scene.task != "position":
        return f"{a} and {b}" if order < 0.5 else f"{b} and {a}"
    relation = scene.relation
    if order >= 0.5:
        a, b, relation = b, a, _INVERSE[relation]
    ways = _SIDES.get(relation, (relation,))
    return f"{a} {ways[int(2 * order % 1 * len(ways))]} {b}"


def _one(thing: Thing, coloured: bool, material: bool = False) -> str:
    words = [thing.material] if material else []
    words += [thing.colour] if coloured else []
    words.append(thing.kind)
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article, *words])


assert all(not kind.endswith("s") for kind in OBJECTS)  # plurals are made by an s
