"""`infinity-jax generate`: the pictures of a benchmark of the field, in the files that its evaluator reads."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from infinity_jax.config import SampleConfig
from infinity_jax.evaluation.benchmarks import card
from infinity_jax.evaluation.benchmarks.card import Plan
from infinity_jax.evaluation.benchmarks.layouts import PromptSet
from infinity_jax.files import atomic, picture_writer
from infinity_jax.files.picture_writer import Wanted
from infinity_jax.sampling.pipeline import InfinityPipeline
from infinity_jax.sampling.request import SampleRequest, SystemOptions
from infinity_jax.text.encoder import padded_lengths
from infinity_jax.text.rewriting import Rewriter


@dataclasses.dataclass(frozen=True)
class _File(Wanted):
    """A file with one picture, or with several as a grid.

    Attributes:
      prompt: what is drawn, rewritten where that is asked for.
      seeds: one a picture.
    """

    prompt: str
    seeds: tuple[int, ...]


def main(
    prompt_set: PromptSet,
    out: str | Path,
    plan: Plan,
    system: SystemOptions,
    settings: Mapping[str, Any] | None = None,
    rewriter: Rewriter | None = None,
) -> None:
    """Writes the square pictures of a benchmark's prompts, and the evaluation card.

    What is there, whole and made in the same way, is kept. A picture depends on its prompt, the number of its prompt
    and its own number, so that shards and runs that were stopped give the pictures of one whole run.

    Args:
      out: the folder; see `layouts` for what lies where.
      plan: seed, budget, batch, and which prompts.
      system: what draws.
      settings: values of fields of `SampleConfig`; the others, and those that are None, are the checkpoint's own.
      rewriter: rewrites the prompts first; None draws them as they are.
    Raises:
      UserError: a setting or the checkpoint is wrong, or `out` has pictures that are made in another way.
    """
    out = Path(out)
    pipeline = InfinityPipeline.from_pretrained(*dataclasses.astuple(system))
    chosen = pipeline.settings.changed(**settings or {})
    plan = dataclasses.replace(plan, batch=_check(pipeline, prompt_set, chosen, plan))
    rewriting = rewriter and rewriter.describe()
    values = card.describe(prompt_set, out, pipeline, system.checkpoint, chosen, plan, rewriting)
    card.keep(out, values)
    folder = out / prompt_set.benchmark.folder
    numbers = range(len(prompt_set.prompts))[plan.shard[0] :: plan.shard[1]]
    _write_texts(prompt_set, numbers, folder)
    files = _files(prompt_set, numbers, folder, values, rewriter)
    missing = [file for file in files if not file.is_there()]
    if kept := len(files) - len(missing):
        logging.info("%d of %d files are there already and kept", kept, len(files))
    atomic.remove_unfinished(file.path for file in missing)
    for parent in {file.path.parent for file in missing}:
        parent.mkdir(parents=True, exist_ok=True)
    drawn = _drawn(pipeline, missing, chosen, plan)
    picture_writer.write_all(missing, drawn, "the same command resumes from there")
    commands = values["evaluator"]["commands"]
    logging.info(
        "wrote %d files to %s%s", len(missing), folder, "; to evaluate the whole:" if commands else ""
    )
    for command in commands:
        logging.info("  %s", command)


def _check(pipeline: InfinityPipeline, prompt_set: PromptSet, settings: SampleConfig, plan: Plan) -> int:
    """Raises UserError for what cannot be drawn, before anything is written; returns the batch, of all shards."""
    texts = [prompt.text for prompt in prompt_set.prompts]
    last = plan.seed + len(texts) * prompt_set.benchmark.pictures - 1
    seeds = [plan.seed] * (len(texts) - 1) + [last]
    request = SampleRequest(texts, seeds, budget=plan.budget, batch=plan.batch)
    pipeline.stream(request, settings)
    return pipeline.batch_of(request)


def _write_texts(prompt_set: PromptSet, numbers: Sequence[int], folder: Path) -> None:
    for number in numbers:
        for name, text in prompt_set.prompts[number].texts.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists() or path.read_text() != text:
                atomic.write_text(path, text)


def _files(
    prompt_set: PromptSet,
    numbers: Sequence[int],
    folder: Path,
    values: Mapping[str, Any],
    rewriter: Rewriter | None,
) -> list[_File]:
    """Lists the files that the prompts of these numbers become."""
    prompts, each = prompt_set.prompts, prompt_set.benchmark.pictures
    texts = [prompts[number].text for number in numbers]
    drawn_texts = texts if rewriter is None else rewriter(texts)
    settings = [field.name for field in dataclasses.fields(SampleConfig)]
    common = {name: values[name] for name in (*settings, "budget", "aspect_ratio")}
    common["checkpoint"] = values["checkpoint"]["sha256"]
    files = []
    for number, text in zip(numbers, drawn_texts, strict=True):
        prompt = prompts[number]
        first = values["seed"] + each * number
        seeds = [first + i for i in range(each)]
        for name, own in zip(prompt.files, np.split(np.array(seeds), len(prompt.files)), strict=True):
            metadata = {"prompt": prompt.text, "drawn": text, "seeds": own.tolist(), **common}
            files.append(_File(folder / name, json.loads(json.dumps(metadata)), text, tuple(own.tolist())))
    return files


def _drawn(
    pipeline: InfinityPipeline, files: Sequence[_File], settings: SampleConfig, plan: Plan
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Draws files; yields which of them, and their pictures uint8, as they become complete.

    Prompts of one padded length go together: a picture's rounding must not depend on what else a shard draws.
    """
    lengths = padded_lengths(pipeline.text_encoder, [f.prompt for f in files]) if files else []
    for length in sorted(set(lengths)):
        rows = [(i, seed) for i, file in enumerate(files) if lengths[i] == length for seed in file.seeds]
        parts: dict[int, list[np.ndarray]] = defaultdict(list)
        prompts, seeds = [files[i].prompt for i, _ in rows], [seed for _, seed in rows]
        request = SampleRequest(prompts, seeds, budget=plan.budget, batch=plan.batch)
        for places, images in pipeline.stream(request, settings):
            for place, image in zip(places, images, strict=True):
                parts[rows[place][0]].append(image)
            whole = [i for i, pictures in parts.items() if len(pictures) == len(files[i].seeds)]
            yield whole, [_grid(parts.pop(i)) for i in whole]


def _grid(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Returns one picture as it is, or n*n uint8 [H,W,3] as one [n*H,n*W,3], row by row."""
    side = round(len(pictures) ** 0.5)
    return np.concatenate(
        [np.concatenate(pictures[i : i + side], axis=1) for i in range(0, len(pictures), side)]
    )
