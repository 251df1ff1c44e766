"""Progressive training: stages in order, each an ordinary run that starts from the weights of the one before.

A stage's workdir is WORKDIR/NAME. Its run begins as with `train.init_from` of the stage before: from the averaged
weights where that run kept an average, with a new optimiser and its own warm-up. Every process of a run does the same
stages: process 0 says which are finished.
"""

import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from infinity_jax.checkpoints import trained
from infinity_jax.checkpoints.run import Checkpointer
from infinity_jax.errors import UserError
from infinity_jax.runtime import trees
from infinity_jax.training import run_config, start, train_transformer

_STARTS = ("init_from", "restore_from")
# What may be changed of a stage that is finished without a word: nothing that its weights depend on.
_HARMLESS = (
    "sample.",
    "mesh.",
    "train.init_from",
    "train.log_",
    "train.profile",
    "train.sample_",
    "train.evaluate_",
    "train.keep_",
    "train.checkpoint_",
)


def main(config: Any, workdir: str | Path) -> None:
    """Trains the stages of `config` in order; those that are finished are left alone.

    Args:
      config: a ConfigDict as `config_files.with_stages` makes it.
      workdir: gets a folder for each stage.
    Raises:
      UserError: before anything is trained, if any stage's config cannot be trained with, its model is not that of the
        stage before, or a stage has begun and the one before it is not finished; else as `train_transformer.main`.
    """
    workdir = Path(workdir)
    configs = linked(config, workdir)
    steps = _check(configs, workdir)
    with start.alone_in(workdir):
        _train(configs, steps, workdir)


def _train(configs: Mapping[str, Any], steps: Sequence[int], workdir: Path) -> None:
    done = _agreed([start.newest_step(workdir / name) for name in configs])
    _check_order(list(configs), done, steps, workdir)
    for number, (name, stage) in enumerate(configs.items()):
        where = f"stage {name} ({number + 1} of {len(configs)})"
        if done[number] >= steps[number]:
            logging.info("%s: finished, it has its %d steps", where, steps[number])
            _name_changes(name, stage, workdir)
        else:
            logging.info("%s: %d steps, in %s", where, steps[number], workdir / name)
            train_transformer.main(stage, workdir / name)


def linked(config: Any, workdir: Path) -> dict[str, Any]:
    """Makes the config of each stage, in order, with the start of all but the first: the workdir of the one before.

    Raises:
      UserError: a later stage is given a start of its own.
    """
    stages = {name: config.stages[name].copy_and_resolve_references() for name in config.stages}
    names = list(stages)
    for before, name in itertools.pairwise(names):
        section = stages[name].train
        for key in _STARTS:
            if section[key] not in ("", config.train[key]):
                raise UserError(
                    f"config.stages.{name}.train.{key} is {section[key]!r}, but this stage starts from the stage "
                    f"{before}; only the first one, {names[0]}, may have another start"
                )
        section.restore_from, section.init_from = "", str(workdir / before)
    return stages


def _check(configs: Mapping[str, Any], workdir: Path) -> list[int]:
    """Reads the steps of each stage. Raises UserError, naming the stage, if one of them could not be trained."""
    steps, models = [], []
    for name, config in configs.items():
        try:
            run = run_config.read_config(config)
            run_config.fitting_tokenizer(run, workdir / name)
        except UserError as error:
            raise UserError(f"stage {name}: {error}") from error
        steps.append(run.train.steps)
        models.append(run.model)
    names = list(configs)
    for name, model in zip(names[1:], models[1:], strict=True):
        if model != models[0] and _shapes(model) != _shapes(models[0]):
            raise UserError(
                f"stage {name} has a model of other parameters than stage {names[0]}, so it cannot start from it; "
                f"make config.stages.{name}.model the same"
            )
    return steps


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return trees.shapes(trained.transformer_shapes(model))


def _agreed(steps: Sequence[int]) -> list[int]:
    """Gives every process what process 0 has found."""
    if jax.process_count() == 1:
        return list(steps)
    return multihost_utils.broadcast_one_to_all(np.array(steps, np.int32)).tolist()


def _check_order(names: Sequence[str], done: Sequence[int], steps: Sequence[int], workdir: Path) -> None:
    """Raises UserError if a stage has begun from one that has fewer steps than are now asked of it."""
    for number, name in enumerate(names[:-1]):
        begun = [names[after] for after in range(number + 1, len(names)) if done[after]]
        if begun and done[number] < steps[number]:
            remedy = f"set --config.stages.{name}.train.steps={done[number]} to resume what is there, or "
            raise UserError(
                f"stage {begun[0]} has begun, and stage {name} before it has {done[number]} of {steps[number]} steps; "
                f"{remedy if done[number] else ''}remove {', '.join(str(workdir / after) for after in begun)} to "
                f"train again from stage {name} on"
            )


def _name_changes(name: str, config: Any, workdir: Path) -> None:
    """Warns of what a finished stage was trained with and the config now says otherwise."""
    with contextlib.closing(Checkpointer(workdir / name / "checkpoints", read_only=True)) as reader:
        was = flatten_dict(reader.config(), sep=".")
    now = flatten_dict(json.loads(json.dumps(config.to_dict())), sep=".")
    changed = [key for key in now if key in was and was[key] != now[key] and not key.startswith(_HARMLESS)]
    if changed:
        logging.warning(
            "stage %s is finished and stays as it is, but its config has changed since: %s. To train it again, remove "
            "%s and the folders of the stages after it",
            *(name, ", ".join(f"{key} was {was[key]!r}" for key in changed), workdir / name),
        )
