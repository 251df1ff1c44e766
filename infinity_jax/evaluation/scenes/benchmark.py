"""`infinity-jax generate --benchmark scenes`: draws prompts of the data set `scenes`, and judges the pictures.

As many prompts of each of GenEval's tasks, of pairs of words that occur in training and of pairs that are held out.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from infinity_jax.data.scenes.captions import caption
from infinity_jax.data.scenes.description import Scene, describe
from infinity_jax.data.scenes.source import NAME
from infinity_jax.data.scenes.vocabulary import TASKS
from infinity_jax.evaluation.benchmarks import generate
from infinity_jax.evaluation.benchmarks.card import Plan
from infinity_jax.evaluation.benchmarks.layouts import IMAGES, Benchmark, Prompt, PromptSet
from infinity_jax.evaluation.scenes import accuracy, judge
from infinity_jax.files import atomic, pictures
from infinity_jax.sampling.request import SystemOptions
from infinity_jax.text.rewriting import Rewriter

OF_A_TASK = 100
REPORT = "scenes.json"
# Kind of prompts -> the split whose scenes have them.
SPLITS = {"seen": "validation", "unseen": "compositions"}
_BENCHMARK = Benchmark(
    NAME,
    "none: they are the data set's",
    lambda path: [],
    lambda files: [],
    1,
    "infinity_jax",
    (),
    folder=IMAGES,
)


class Asked(NamedTuple):
    """A scene that is asked for by its caption: of which kind of `SPLITS`, and where its picture lies."""

    kind: str
    file: str
    scene: Scene


def asked() -> list[Asked]:
    """Lists all scenes, kinds and tasks in turns, so that the first N are of all."""
    streams = {kind: {task: _of_task(split, task) for task in TASKS} for kind, split in SPLITS.items()}
    return [
        Asked(kind, f"{kind}/{len(TASKS) * i + j:04d}.png", next(streams[kind][task]))
        for i in range(OF_A_TASK)
        for j, task in enumerate(TASKS)
        for kind in SPLITS
    ]


def _of_task(split: str, task: str) -> Iterator[Scene]:
    number = 0
    while True:
        scene = describe(0, split, number)
        number += 1
        if scene.task == task:
            yield scene


def prompt_set(limit: int | None = None) -> PromptSet:
    """Lists the prompts, the first `limit` of them."""
    prompts = [Prompt(caption(one.scene), (one.file,)) for one in asked()]
    texts = "\n".join(prompt.text for prompt in prompts)
    return PromptSet(_BENCHMARK, Path(NAME), prompts[:limit], hashlib.sha256(texts.encode()).hexdigest())


def main(
    out: Path,
    limit: int | None,
    plan: Plan,
    system: SystemOptions,
    settings: Mapping[str, Any] | None = None,
    rewriter: Rewriter | None = None,
) -> dict[str, Any]:
    """Draws the first `limit` prompts into `out`, judges them once all are there, and writes scenes.json.

    Arguments and what is raised are those of `generate.main`.

    Returns:
      what was written, see `report`; nothing where other shards have still to draw.
    """
    prompts = prompt_set(limit)
    generate.main(prompts, out, plan, system, settings, rewriter)
    drawn = asked()[: len(prompts.prompts)]
    folder = out / _BENCHMARK.folder
    if missing := sum(not (folder / one.file).exists() for one in drawn):
        logging.info("%d pictures of other shards are not there yet; the last shard judges them all", missing)
        return {}
    result = report(drawn, np.stack([np.asarray(pictures.read_rgb(folder / one.file)) for one in drawn]))
    atomic.write_json(out / REPORT, result)
    logging.info("wrote %s", out / REPORT)
    print(as_text(result))
    return result


def report(drawn: list[Asked], image_NHW3: np.ndarray) -> dict[str, Any]:
    """Judges pictures uint8 [N,H,H,3] of scenes: of each kind that there is, `accuracy.summary`."""
    result = {}
    for kind in SPLITS:
        rows = [i for i, one in enumerate(drawn) if one.kind == kind]
        if rows:
            result[kind] = accuracy.summary([drawn[i].scene for i in rows], judge.look(image_NHW3[rows]))
    return result


def as_text(report: Mapping[str, Any]) -> str:
    """Writes a line for each kind and task."""
    lines = []
    for kind, of_kind in report.items():
        for task, row in {"all tasks": of_kind, **of_kind["tasks"]}.items():
            low, high = row["interval"]
            share = f"{row['accuracy']:6.1%} ({low:.1%} to {high:.1%}, {row['pictures']} pictures)"
            lines.append(f"{kind:<7} {task:<14} {share}")
    return "\n".join(lines)
