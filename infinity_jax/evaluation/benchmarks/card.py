"""The evaluation card, card.json: what pictures were made from and how, and what is to be run on them next."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging
from flax.traverse_util import flatten_dict

from infinity_jax.checkpoints import folder as checkpoint_folder
from infinity_jax.checkpoints import opened, origin
from infinity_jax.checkpoints.run import Checkpointer
from infinity_jax.config import SampleConfig
from infinity_jax.errors import UserError
from infinity_jax.evaluation.benchmarks import prompt_files
from infinity_jax.evaluation.benchmarks.layouts import PromptSet
from infinity_jax.files import atomic, pictures, reading
from infinity_jax.sampling.pipeline import InfinityPipeline

NAME = "card.json"
# What may be another one when a run goes on: it changes no picture, or only its rounding.
_FREE = ("prompts.path", "checkpoint.path", "evaluator", "machine")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the prompts of a benchmark are drawn.

    Attributes:
      seed: of the first prompt's first picture; the others follow as the card says.
      budget: pixels, "0.06M" to "1M"; None is the checkpoint's own.
      batch: pictures drawn at once; see `SampleRequest`.
      shard: (i, n) draws prompts i, i + n, i + 2n ...
    """

    seed: int = 0
    budget: str | None = None
    batch: int | None = None
    shard: tuple[int, int] = (0, 1)


def describe(
    prompt_set: PromptSet,
    out: Path,
    pipeline: InfinityPipeline,
    checkpoint: str,
    settings: SampleConfig,
    plan: Plan,
    rewriting: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Describes pictures that are about to be drawn: the card as JSON gives it back."""
    benchmark, number = prompt_set.benchmark, len(prompt_set.prompts)
    height, width = pipeline.picture_size(budget=plan.budget)
    formats = {".png": "PNG", ".jpg": f"JPEG, quality {pictures.JPEG_QUALITY}"}
    suffix = Path(prompt_set.prompts[0].files[0]).suffix
    values = {
        "benchmark": benchmark.name,
        "prompts": {"path": str(prompt_set.path), "sha256": prompt_set.sha256, "number": number},
        "pictures": {
            "number": number * benchmark.pictures,
            "of_a_prompt": benchmark.pictures,
            "height": height,
            "width": width,
            "files": formats[suffix] + (", grids of 2x2" if benchmark.grid else ""),
        },
        "checkpoint": {"path": checkpoint, **checkpoint_identity(checkpoint)},
        "text_encoder": pipeline.text_encoder.name,
        **dataclasses.asdict(settings),
        "budget": plan.budget or pipeline.model.tokenizer.scales,
        "aspect_ratio": "1:1",
        "seed": plan.seed,
        "seeds": f"{plan.seed} + {benchmark.pictures} * number of the prompt + number of its picture, both from 0",
        "rewriting": rewriting,
        "package": origin.package(),
        "evaluator": {
            "project": benchmark.project,
            "commands": benchmark.next_commands(out, prompt_set.path, height),
        },
        "machine": {
            "platform": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
            "devices": 1 if pipeline.layout is None else pipeline.layout.mesh.size,
            "batch": plan.batch,
        },
    }
    return json.loads(json.dumps(values))


def keep(folder: Path, card: Mapping[str, Any]) -> None:
    """Writes the card into a folder that has none.

    Raises:
      UserError: the pictures there are made in another way, or nothing says how; the message names the difference.
    """
    file = folder / NAME
    holds_files = folder.is_dir() and any(p.name[0] != "." and p.name != NAME for p in folder.iterdir())
    # Looked for last: another shard may begin at the same time, which writes the card first and then pictures.
    if not file.exists():
        if holds_files:
            raise UserError(f"{folder} holds files but no {NAME}; name an empty folder, or a new one")
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_json(file, card)
        return
    there = reading.read_object(file, "name another folder")
    old, new = (flatten_dict(values, sep=".") for values in (there, card))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name) and not name.startswith(_FREE):
            raise UserError(
                f"the pictures in {folder} are made with {name} = {json.dumps(old.get(name))}, now it is "
                f"{json.dumps(new.get(name))}; name another folder, or take the settings of {file}"
            )
    if there.get("machine") != card["machine"]:
        logging.warning(
            "%s was begun on %s, this is %s: single bits of pictures may be rounded otherwise",
            folder,
            there.get("machine"),
            card["machine"],
        )


def checkpoint_identity(checkpoint: str) -> dict[str, Any]:
    """Identifies this checkpoint's weights: {"sha256"} of a folder, {"step", "sha256"} of a training run.

    Of a folder it is the hash of its config and weights, of a run that of its config.
    """
    folder = opened.resolve(checkpoint)
    if (folder / checkpoint_folder.CONFIG).is_file():
        parts = (checkpoint_folder.WEIGHTS[part] for part in checkpoint_folder.SYSTEM)
        names = (checkpoint_folder.CONFIG, *parts)
        return {"sha256": prompt_files.sha256(folder / name for name in names)}
    with contextlib.closing(Checkpointer(folder / "checkpoints", read_only=True)) as reader:
        config = json.dumps(reader.config(), sort_keys=True).encode()
        return {"step": reader.latest_step(), "sha256": hashlib.sha256(config).hexdigest()}
