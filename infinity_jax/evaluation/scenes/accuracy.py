"""Whether pictures show what their captions ask for: GenEval's accuracy by task, and what was drawn instead.

As in GenEval (arXiv 2310.11513, section 3): an object counts as drawn where one of its kind is seen; a number must be
met exactly; a colour is that of an object of the kind; a relation is that of the two most certain ones. More objects
than were asked for are wrong in counting alone.
"""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from infinity_jax.data.scenes.captions import caption
from infinity_jax.data.scenes.description import Scene
from infinity_jax.data.scenes.vocabulary import TASKS
from infinity_jax.evaluation.scenes.judge import Found, Sight
from infinity_jax.metrics import bootstrap

NOTHING = "nothing"


class Verdict(NamedTuple):
    """Whether a picture shows what was asked for, and (asked for, drawn instead) where it does not."""

    right: bool
    instead: tuple[str, str] = ("", "")


def judge(scene: Scene, sight: Sight) -> Verdict:
    """Compares what is seen with what the scene's caption asks for; the first thing that is wrong is told.

    A floor counts where the caption of a single object names it.
    """
    first, *others = scene.things
    if scene.task == "counting":
        drawn = len(_of_kind(sight, first.kind))
        wanted = f"{len(scene.things)} {first.kind}s"
        return _verdict(wanted, wanted if drawn == len(scene.things) else _kinds(sight))
    with_colour = scene.task in ("colors", "color_attr")
    for thing in scene.things:
        if not _of_kind(sight, thing.kind):
            return Verdict(False, (thing.kind, _other_kind(sight, scene)))
        colours = {found.colour for found in _of_kind(sight, thing.kind)}
        if with_colour and thing.colour not in colours:
            return Verdict(False, (f"{thing.colour} {thing.kind}", f"{min(colours)} {thing.kind}"))
    if scene.relation:
        a, b = (_of_kind(sight, thing.kind)[0] for thing in (first, others[0]))
        return _verdict(scene.relation, relation(a, b))
    if scene.task == "single_object" and f"{scene.floor} floor" in caption(scene):
        return _verdict(f"{scene.floor} floor", f"{sight.floor} floor")
    return Verdict(True)


def relation(a: Found, b: Found) -> str:
    """Names how `a` stands to `b`: by the direction in which they are further apart."""
    right, nearer = a.x - b.x, a.z - b.z
    if abs(right) >= abs(nearer):
        return "right of" if right > 0 else "left of"
    return "in front of" if nearer > 0 else "behind"


def summary(scenes: Sequence[Scene], sights: Sequence[Sight]) -> dict[str, Any]:
    """Measures the accuracy of pictures, by task.

    Returns:
      `accuracy` and `interval` (95%, bootstrap) of the mean over the tasks, as GenEval's overall score; `pictures`;
      `tasks`: of each task the same, and `instead`: [asked for, drawn, how often], the most frequent first.
    """
    verdicts = [judge(scene, sight) for scene, sight in zip(scenes, sights, strict=True)]
    tasks, resampled = {}, []
    for task in TASKS:
        own = [verdict for scene, verdict in zip(scenes, verdicts, strict=True) if scene.task == task]
        if not own:
            continue
        right = np.array([verdict.right for verdict in own], np.float64)
        wrong = collections.Counter(verdict.instead for verdict in own if not verdict.right)
        tasks[task] = {
            "accuracy": float(right.mean()),
            "interval": bootstrap.mean_interval(right),
            "pictures": len(own),
            "instead": [[*pair, count] for pair, count in sorted(wrong.items(), key=lambda x: (-x[1], x[0]))],
        }
        resampled.append(right)
    return {
        "accuracy": float(np.mean([right.mean() for right in resampled])),
        "interval": bootstrap.mean_of_means_interval(resampled),
        "pictures": len(verdicts),
        "tasks": tasks,
    }


def _of_kind(sight: Sight, kind: str) -> list[Found]:
    return [found for found in sight.objects if found.kind == kind]


def _verdict(wanted: str, drawn: str) -> Verdict:
    return Verdict(wanted == drawn, ("", "") if wanted == drawn else (wanted, drawn))


def _kinds(sight: Sight) -> str:
    """Counts what is seen, like "2 balls, 1 cube"."""
    counts = collections.Counter(found.kind for found in sight.objects)
    words = [
        f"{n} {kind}{'s' if n > 1 else ''}" for kind, n in sorted(counts.items(), key=lambda x: (-x[1], x[0]))
    ]
    return ", ".join(words) or NOTHING


def _other_kind(sight: Sight, scene: Scene) -> str:
    """Names the most certain object that was not asked for."""
    asked = {thing.kind for thing in scene.things}
    return next((found.kind for found in sight.objects if found.kind not in asked), NOTHING)
