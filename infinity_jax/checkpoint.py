"""Checkpoints: one composite of state, place in the data, and config, written whole or not at all."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from infinity_jax.errors import UserError
from infinity_jax.optim import parameter_name
from infinity_jax.train_state import TrainState

_Shapes = Mapping[str, tuple[int, ...]]


class Checkpointer:
    """The checkpoints of one run, in `directory`/<step>.

    An interrupted save leaves a folder that is never taken for a checkpoint and is removed at the next start.
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int | None = None, read_only: bool = False):
        """Opens `directory`; unless `read_only` it is made when missing and only the newest `keep` are kept."""
        self.directory = Path(directory).absolute()
        if read_only and not self.directory.is_dir():
            raise UserError(f"no checkpoints: the folder {self.directory} does not exist")
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                # Synchronous, so that a full disk is reported at the step where it happens.
                enable_async_checkpointing=False,
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
                "config": ocp.JsonCheckpointHandler(),
            },
        )

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, data: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Writes a checkpoint; when it returns, the checkpoint is complete.

        Args:
          step: its name; a step that is already saved is left alone.
          state: written with dtypes and shapes as they are.
          data: the place in the data: seed, next_step, examples.
          config: the run's whole config, as plain dicts.
        Raises:
          UserError: the disk is full or cannot be written. Earlier checkpoints are intact.
        """
        if step in self._manager.all_steps():
            return
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),  # pyright: ignore[reportCallIssue]
                    data=ocp.args.JsonSave(dict(data)),  # pyright: ignore[reportCallIssue]
                    config=ocp.args.JsonSave(dict(config)),  # pyright: ignore[reportCallIssue]
                ),
                force=True,
            )
        except Exception as error:
            reason = _operating_system_reason(error)
            if reason is None:
                raise
            for unfinished in self.directory.glob(f"{step}.*tmp*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            earlier = self.latest_step()
            intact = (
                "no earlier one exists"
                if earlier is None
                else f"earlier ones up to step {earlier} are intact"
            )
            raise UserError(
                f"could not save the checkpoint of step {step} in {self.directory}: {reason}; {intact}. "
                "Make room there or use another --workdir, then run the same command again"
            ) from error

    def restore(self, target: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """A checkpoint's state and place in the data.

        Args:
          target: a state of the same model; arrays (or ShapeDtypeStructs) give shapes, dtypes and shardings.
          step: which checkpoint; None is the newest.
        Raises:
          UserError: there is none, or it is of another model: the first parameter that differs is named.
        """
        step = self._existing_step(step)
        stored = self._stored_shapes(step)
        # The parameters first: their names say more than the optimiser's.
        for part in ("params", "ema_params", "opt_state"):
            self._check_same_tree(step, stored, _shapes({part: getattr(target, part)}), part)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(_abstract(target)),  # pyright: ignore[reportCallIssue]
                data=ocp.args.JsonRestore(),
            ),
        )
        return restored["state"], restored["data"]

    def restore_params(self, target_params: PyTree, step: int | None = None) -> PyTree:
        """Only the model: the averaged parameters (EMA) where the run kept them, else the parameters.

        Arguments and errors as in `restore`.
        """
        step = self._existing_step(step)
        stored = self._stored_shapes(step)
        key = "ema_params" if any(name.startswith("ema_params/") for name in stored) else "params"
        self._check_same_tree(step, stored, _shapes({key: target_params}), key)
        path = self.directory / str(step) / "state"
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            target = {key: _abstract(target_params)}
            restored = reader.restore(
                path,
                args=ocp.args.PyTreeRestore(  # pyright: ignore[reportCallIssue]
                    item=target,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                    partial_restore=True,
                ),
            )
        return restored[key]

    def config(self, step: int | None = None) -> dict[str, Any]:
        """The config of the run that wrote the checkpoint, as plain dicts (tuples have become lists)."""
        args = ocp.args.Composite(config=ocp.args.JsonRestore())
        return self._manager.restore(self._existing_step(step), args=args)["config"]

    def close(self) -> None:
        """Releases the threads that orbax holds."""
        self._manager.close()

    def _existing_step(self, step: int | None) -> int:
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise UserError(f"no complete checkpoint in {self.directory}")
        if step is not None and step not in steps:
            raise UserError(f"no checkpoint of step {step} in {self.directory}; there are: {steps}")
        return steps[-1] if step is None else step

    def _stored_shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        return _shapes(self._manager.item_metadata(step)["state"].tree)

    def _check_same_tree(self, step: int, stored: _Shapes, wanted: _Shapes, part: str) -> None:
        """Raises UserError naming the first array of `part` whose presence or shape differs from the checkpoint's."""
        for name in [*wanted, *(n for n in stored if n.startswith(f"{part}/") and n not in wanted)]:
            if stored.get(name) != wanted.get(name):
                there, here = (
                    str(shapes[name]) if name in shapes else "nothing" for shapes in (stored, wanted)
                )
                raise UserError(
                    f"the checkpoint {self.directory / str(step)} is of another model: {name} is {there} there "
                    f"and {here} in this config; use the config it was made with, or another folder"
                )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every array of a tree."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {parameter_name(path): tuple(leaf.shape) for path, leaf in leaves}


def _abstract(tree: PyTree) -> PyTree:
    """The tree's shapes, dtypes and shardings without its numbers."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), tree
    )


def _operating_system_reason(error: BaseException) -> str | None:
    """Why the operating system refused to write, or None if something else is wrong.

    The array writer reports such errors as ValueError with the number in its text.
    """
    match = re.search(r"os_error_code='(\d+)'", str(error))
    number = int(match[1]) if match else getattr(error, "errno", None)
    return None if number is None else os.strerror(number)
