"""What counts as right in each of GenEval's tasks, by sights that are written down here."""

import pytest

from infinity_jax.data.scenes.description import Scene, Thing
from infinity_jax.data.scenes.vocabulary import TASKS
from infinity_jax.evaluation.scenes import accuracy, benchmark
from infinity_jax.evaluation.scenes.judge import Found, Sight


def scene(task: str, *things: tuple[str, str], relation: str = "", floor: str = "sand", named: bool = False):
    """A scene whose objects have these kinds and colours; its caption names the floor if it is `named`."""
    placed = tuple(
        Thing(kind, colour, "matte", float(i), 0.0, 0.8, 0.0) for i, (kind, colour) in enumerate(things)
    )
    wording = (0.0, 0.0, 0.0 if named else 0.9, 0.9)
    return Scene(task, placed, relation, floor, (0.0, 1.0), (0.0, 0.6, 6.5), 0.0, wording)


def sight(*objects: tuple[str, str], floor: str = "sand", places: tuple = ()):
    """What is seen: kinds and colours, the first the most certain, side by side unless places are given."""
    places = places or tuple((float(i), 0.0) for i in range(len(objects)))
    found = [
        Found(kind, colour, "metal", x, z, 0.9 - 0.1 * i)
        for i, ((kind, colour), (x, z)) in enumerate(zip(objects, places, strict=True))
    ]
    return Sight(tuple(found), floor)


RED_BALL, BLUE_BALL, RED_CUBE, BLUE_CUBE = (
    (kind, colour) for kind in ("ball", "cube") for colour in ("red", "blue")
)
BALL, CUBE = RED_BALL, BLUE_CUBE


@pytest.mark.parametrize(
    ("asked", "seen", "instead"),
    [
        (scene("single_object", BALL), sight(BLUE_BALL, CUBE), None),
        (scene("single_object", BALL), sight(CUBE), ("ball", "cube")),
        (scene("single_object", BALL), sight(), ("ball", "nothing")),
        (scene("single_object", BALL, floor="stone"), sight(BALL), None),
        (
            scene("single_object", BALL, floor="stone", named=True),
            sight(BALL),
            ("stone floor", "sand floor"),
        ),
        (scene("two_object", BALL, CUBE), sight(CUBE, BALL), None),
        (scene("two_object", BALL, CUBE), sight(BALL, BLUE_BALL), ("cube", "nothing")),
        (scene("two_object", BALL, CUBE), sight(BALL, ("cone", "red")), ("cube", "cone")),
        (scene("counting", BALL, BALL), sight(BALL, BLUE_BALL), None),
        (scene("counting", BALL, BALL), sight(BALL, BALL, BALL), ("2 balls", "3 balls")),
        (scene("counting", BALL, BALL), sight(BALL, CUBE), ("2 balls", "1 ball, 1 cube")),
        (scene("colors", RED_BALL), sight(RED_BALL), None),
        (scene("colors", RED_BALL), sight(BLUE_BALL, RED_CUBE), ("red ball", "blue ball")),
        (scene("color_attr", RED_BALL, BLUE_CUBE), sight(BLUE_CUBE, RED_BALL), None),
        (scene("color_attr", RED_BALL, BLUE_CUBE), sight(RED_CUBE, BLUE_BALL), ("red ball", "blue ball")),
        (scene("position", BALL, CUBE, relation="left of"), sight(BALL, CUBE), None),
        (
            scene("position", BALL, CUBE, relation="left of"),
            sight(BALL, CUBE, places=((1.0, 0.0), (-1.0, 0.5))),
            ("left of", "right of"),
        ),
        (
            scene("position", BALL, CUBE, relation="behind"),
            sight(CUBE, BALL, places=((0.2, -1.0), (0.0, 1.0))),
            ("behind", "in front of"),
        ),
        (scene("position", BALL, CUBE, relation="behind"), sight(BALL), ("cube", "nothing")),
    ],
)
def test_a_picture_is_right_if_it_shows_what_its_task_asks_for(asked, seen, instead):
    verdict = accuracy.judge(asked, seen)
    assert verdict == (accuracy.Verdict(True) if instead is None else accuracy.Verdict(False, instead))


def test_a_summary_counts_by_task_and_says_what_was_drawn_instead():
    scenes = [scene("single_object", BALL)] * 4 + [scene("counting", CUBE, CUBE)] * 2
    sights = [sight(BALL), sight(CUBE), sight(CUBE), sight(), sight(CUBE, CUBE), sight(CUBE, CUBE)]
    report = accuracy.summary(scenes, sights)
    single, counting = report["tasks"]["single_object"], report["tasks"]["counting"]
    assert (single["accuracy"], counting["accuracy"], report["accuracy"]) == (0.25, 1.0, 0.625)
    assert single["instead"] == [["ball", "cube", 2], ["ball", "nothing", 1]] and counting["instead"] == []
    low, high = report["interval"]
    assert 0.5 <= low < 0.625 < high <= 1.0
    assert (report["pictures"], counting["pictures"]) == (6, 2)
    assert "seen    counting       100.0% (100.0% to 100.0%, 2 pictures)" in benchmark.as_text(
        {"seen": report}
    )


@pytest.mark.slow
def test_prompts_are_of_all_tasks_seen_and_unseen_and_never_change():
    asked = benchmark.asked()
    assert len(asked) == len({one.file for one in asked}) == 12 * benchmark.OF_A_TASK
    for part in (asked, asked[:12], asked[24:48]):
        for kind in benchmark.SPLITS:
            tasks = [one.scene.task for one in part if one.kind == kind]
            assert {tasks.count(task) for task in TASKS} == {len(part) // 12}
    assert all(one.scene.is_unseen() == (one.kind == "unseen") for one in asked)
    prompts = benchmark.prompt_set(5)
    assert [prompt.files for prompt in prompts.prompts] == [(one.file,) for one in asked[:5]]
    assert prompts.sha256 == "dc976c7f21388a8ce88bba1c5f9403e94eb8ac53e835e7e71342878ef598beea"
