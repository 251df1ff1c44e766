"""How a run starts: from its own newest checkpoint, from another run's, from given parameters, or afresh."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from infinity_jax.checkpoints import origin
from infinity_jax.checkpoints.opened import open_checkpoint
from infinity_jax.checkpoints.run import Checkpointer
from infinity_jax.errors import UserError
from infinity_jax.files import atomic
from infinity_jax.runtime import distributed
from infinity_jax.runtime.sharding import put
from infinity_jax.training.config import TrainConfig
from infinity_jax.training.state import TrainState, TrainStep


@contextlib.contextmanager
def alone_in(workdir: Path) -> Iterator[None]:
    """Keeps other runs out of `workdir`, which is made, and removes what killed ones left unfinished there.

    Raises:
      UserError: another run is at it.
    """
    remedy = "wait for its end, stop it, or give another --workdir"
    with distributed.alone(workdir / ".lock", f"trains in {workdir}", remedy):
        if jax.process_index() == 0:
            for folder in (workdir, workdir / "samples", workdir / "tokenizer"):
                atomic.clean(folder)
        yield


def first_state(
    checkpointer: Checkpointer,
    train: TrainConfig,
    step: TrainStep,
    load_params: Callable[[str, Any], Any],
    examples_before: Callable[[int], int],
) -> TrainState:
    """Makes the first state: resume -> restore_from -> init_from -> scratch, whichever comes first.

    Args:
      step: makes a fresh state, and says where each array lies, whatever it comes from.
      load_params: (path, params like those wanted) -> params, for `train.init_from`.
      examples_before: step (0-based) -> examples of all batches before it.
    Raises:
      UserError: a checkpoint of another model or another seed.
    """
    wanted = step.state_shapes()
    _check_shared(checkpointer)
    if checkpointer.latest_step() is not None:
        state, data = checkpointer.restore(wanted)
        _check_data(data, train, examples_before)
        logging.info("start: resume at step %d from %s", int(state.step), checkpointer.directory)
        return state
    if train.restore_from:
        source = Path(train.restore_from) / "checkpoints"
        other = Checkpointer(source if source.is_dir() else train.restore_from, read_only=True)
        with contextlib.closing(other):
            state, data = other.restore(wanted)
        _check_data(data, train, examples_before)
        logging.info("start: restore_from %s at step %d", train.restore_from, int(state.step))
        return state
    state = step.fresh_state()
    if train.init_from:
        shardings = step.shardings.params
        params = jax.tree.map(put, load_params(train.init_from, wanted.params), shardings)
        copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings)
        ema = None if state.ema_params is None else copied(params)
        state = state.replace(params=params, ema_params=ema)  # pyright: ignore[reportAttributeAccessIssue]
        logging.info("start: init_from %s at step 0", train.init_from)
    else:
        logging.info("start: scratch")
    return state


def newest_step(workdir: Path) -> int:
    """Finds the step of the newest complete checkpoint, 0 if there is none; nothing is opened or cleaned up."""
    folder = workdir / "checkpoints"
    return max(ocp.utils.checkpoint_steps(folder), default=0) if folder.is_dir() else 0


def data_before(train: TrainConfig, workdir: Path, part: str) -> list[str]:
    """Names the data that the weights were trained on which a run of `part` starts from; see `origin.data_of`.

    A run that goes on keeps what it noted: the checkpoint that it began with need not be there any more.
    """
    if newest_step(workdir):
        return open_checkpoint(workdir).origin(part).get("origin", {}).get("earlier_data", [])
    path = train.restore_from or train.init_from
    return origin.data_of(open_checkpoint(path).origin(part)) if path else []


def _check_shared(checkpointer: Checkpointer) -> None:
    """Raises UserError unless all processes see the same folder of checkpoints."""
    if jax.process_count() == 1:
        return
    newest = checkpointer.latest_step()
    number = 0 if not checkpointer.directory.is_dir() else 1 if newest is None else 2 + newest
    seen = multihost_utils.process_allgather(np.int32(number)).tolist()
    if len(set(seen)) > 1 or 0 in seen:
        words = ("nothing", "no checkpoint")
        raise UserError(
            f"the processes do not see the same {checkpointer.directory}: "
            + ", ".join(f"process {i} {words[n] if n < 2 else f'step {n - 2}'}" for i, n in enumerate(seen))
            + "; give a --workdir on a disk that all machines share"
        )


def _check_data(data: Mapping[str, Any], train: TrainConfig, examples_before: Callable[[int], int]) -> None:
    """Refuses another seed, and warns of other batch sizes: a resumed run should see the data of an unbroken one."""
    if data["seed"] != train.seed:
        raise UserError(
            f"the checkpoint's run has train.seed {data['seed']}, this config {train.seed}; "
            f"set --config.train.seed={data['seed']} to resume, or use another --workdir"
        )
    if data["next_step"] >= train.steps:
        return  # this run reads nothing more, and may plan no batches so far on
    read = examples_before(data["next_step"])
    if data["examples"] != read:
        logging.warning(
            "the checkpoint's run read %d pictures up to step %d, this config reads %d up to there; resume with the "
            "same train.batch_size (and data.mix) to see every picture equally often",
            data["examples"],
            data["next_step"],
            read,
        )
