"""Checkpoints: one composite of state, place in the data, and config, written whole or not at all.

A state is as in `state_tree`. The model's parameters are its field `params`; `ema_params`, where it has that, is their
moving average.
"""

import contextlib
import dataclasses
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging
from jaxtyping import PyTree

from infinity_jax.checkpoints import damage, keeping, rotary, state_tree
from infinity_jax.errors import UserError
from infinity_jax.runtime import trees

State = TypeVar("State", bound=Any)
_Shapes = Mapping[str, tuple[int, ...]]


class Checkpointer:
    """The checkpoints of one run, in `directory`/<step>.

    They are written in the background. An interrupted save leaves a folder that is never taken for a checkpoint; it is
    named in the log and removed at the next start. Of several processes all must do the same calls, and see the same
    `directory` on a disk that they share.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep: int | None = None,
        keep_every: int = 0,
        keep_best: str = "",
        read_only: bool = False,
    ):
        """Opens `directory`; unless `read_only` it is made when missing, and what need not be kept is removed.

        Args:
          keep: the newest so many are kept; None keeps all.
          keep_every: those of steps divisible by this are kept permanently; 0 for none.
          keep_best: the best by this one of their `metrics` is kept, see `keeping.score`; "" for none.
        Raises:
          UserError: `read_only`, and there is no such folder, or what orbax keeps of the checkpoints cannot be read.
        """
        self.directory = Path(directory).absolute()
        if read_only and not self.directory.is_dir():
            raise UserError(f"no checkpoints: the folder {self.directory} does not exist")
        if not read_only:
            self._name_incomplete()
        self._barrier = _Barrier()
        self._saving: int | None = None
        remedy = "mend or remove the damaged checkpoint in it, and run the same command again"
        with damage.explained(self.directory, lambda: remedy):
            self._manager = self._opened(keep, keep_every, keep_best, read_only)

    def _opened(
        self, keep: int | None, keep_every: int, keep_best: str, read_only: bool
    ) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=None if read_only else keeping.policy(keep, keep_every, keep_best),
                # Without it orbax does not write the metrics.
                best_fn=keeping.score(keep_best) if keep_best else None,
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                temporary_path_class=damage.SealedPath,
                async_options=ocp.AsyncOptions(barrier_sync_fn=self._barrier),
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
                "config": ocp.JsonCheckpointHandler(),
            },
        )

    def _name_incomplete(self) -> None:
        if jax.process_index() != 0 or not self.directory.is_dir():
            return
        for folder in sorted(self.directory.iterdir()):
            if folder.name[0].isdecimal() and not ocp.utils.is_checkpoint_finalized(folder):
                logging.warning(
                    "incomplete checkpoint %s: its save was cut short; it is skipped and removed", folder
                )

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, complete or being written, or None."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: PyTree,
        data: Mapping[str, Any],
        config: Mapping[str, Any],
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts to write a checkpoint; when it returns, `state` is copied and may be donated.

        Args:
          step: its name; a step that is already saved is left alone.
          state: a dataclass of arrays, written with dtypes and shapes as they are.
          data: the place in the data: seed, next_step, examples.
          config: the run's whole config, as plain dicts.
          metrics: plain numbers to judge it by, see `keep_best`.
        Raises:
          UserError: as `check`.
        """
        if step in self._manager.all_steps():
            return
        self.wait()
        self._saving = step
        with self._explained():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state_tree.tree(state)),  # pyright: ignore[reportCallIssue]
                    data=ocp.args.JsonSave({**data, **rotary.MARK}),  # pyright: ignore[reportCallIssue]
                    config=ocp.args.JsonSave(dict(config)),  # pyright: ignore[reportCallIssue]
                ),
                metrics=metrics,
                force=True,
            )

    def check(self) -> None:
        """Raises UserError if the save that was last started could not write. Does not wait for it."""
        if self._barrier.after_failure:
            self.wait()

    def wait(self) -> None:
        """Returns when the save that was last started is complete. Raises as `check`."""
        with self._explained():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns a system's refusal to write into UserError."""
        try:
            yield
        except Exception as error:
            reason = _operating_system_reason(error)
            if reason is None:
                raise
            step, self._barrier.after_failure = self._saving, False
            if jax.process_index() == 0:
                for unfinished in self.directory.glob(f"{step}.*tmp*"):
                    shutil.rmtree(unfinished, ignore_errors=True)
            self._manager.reload()
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

    def restore(self, target: State, step: int | None = None) -> tuple[State, dict[str, Any]]:
        """Reads a checkpoint's state and its place in the data.

        Args:
          target: a state of the same model; arrays (or ShapeDtypeStructs) give shapes, dtypes and shardings.
          step: which checkpoint; None is the newest.
        Raises:
          UserError: there is none, it is damaged, or it is of another model: the first parameter that differs is named.
        """
        step = self._existing_step(step)
        with self._reading(step, "state", "data"):
            stored = self._stored_shapes(step)
            absent = state_tree.absent(target, stored)
            target = dataclasses.replace(target, **dict.fromkeys(absent))
            for field in dataclasses.fields(target):
                wanted = trees.shapes({field.name: getattr(target, field.name)})
                self._check_same_tree(step, stored, wanted, field.name, optional=field.default is None)
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(state_tree.abstract(state_tree.tree(target))),  # pyright: ignore[reportCallIssue]
                    data=ocp.args.JsonRestore(),
                ),
            )
            data = {key: int(restored["data"][key]) for key in ("seed", "next_step", "examples")}
        state = rotary.in_halves(restored["state"], restored["data"])
        return dataclasses.replace(target, **state, **absent), data

    def restore_params(self, target_params: PyTree) -> PyTree:
        """Reads only the model: the averaged parameters (EMA) where the run kept them, else the parameters.

        The newest checkpoint's, errors as in `restore`.
        """
        step = self._existing_step()
        handler = ocp.PyTreeCheckpointHandler()
        with self._reading(step, "state", "data"), ocp.Checkpointer(handler) as reader:
            marks = self._manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))["data"]
            stored = self._stored_shapes(step)
            key = "ema_params" if any(name.startswith("ema_params/") for name in stored) else "params"
            self._check_same_tree(step, stored, trees.shapes({key: target_params}), key)
            target = {key: state_tree.abstract(target_params)}
            restored = reader.restore(
                self.directory / str(step) / "state",
                args=ocp.args.PyTreeRestore(  # pyright: ignore[reportCallIssue]
                    item=target,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                    partial_restore=True,
                ),
            )
            return rotary.in_halves(restored[key], marks)

    def config(self) -> dict[str, Any]:
        """The config of the run that wrote the newest checkpoint, as plain dicts (tuples have become lists)."""
        args, step = ocp.args.Composite(config=ocp.args.JsonRestore()), self._existing_step()
        with self._reading(step, "config"):
            return dict(self._manager.restore(step, args=args)["config"])

    def _reading(self, step: int, *items: str) -> contextlib.AbstractContextManager[None]:
        return damage.Steps(self.directory, self._manager.all_steps()).reading(step, *items)

    def close(self) -> None:
        """Waits as `wait` does, and releases the threads that orbax holds."""
        with self._explained():
            self._manager.close()

    def _existing_step(self, step: int | None = None) -> int:
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise UserError(f"no complete checkpoint in {self.directory}")
        if step is not None and step not in steps:
            raise UserError(f"no checkpoint of step {step} in {self.directory}; there are: {steps}")
        return steps[-1] if step is None else step

    def _stored_shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        return trees.shapes(self._manager.item_metadata(step)["state"].tree)

    def _check_same_tree(
        self, step: int, stored: _Shapes, wanted: _Shapes, part: str, optional: bool = False
    ) -> None:
        """Raises UserError naming the first array of `part` whose presence or shape differs from the checkpoint's."""
        for name in [*wanted, *(n for n in stored if n.startswith(f"{part}/") and n not in wanted)]:
            if stored.get(name) != wanted.get(name):
                there, here = (
                    str(shapes[name]) if name in shapes else "nothing" for shapes in (stored, wanted)
                )
                kind = f"run, with or without {part}" if optional else "model"
                raise UserError(
                    f"the checkpoint {self.directory / str(step)} is of another {kind}: {name} is {there} there "
                    f"and {here} in this config; use the config it was made with, or another folder"
                )


class _Barrier:
    """orbax's barrier between processes, which also notes that a background save has failed.

    orbax tells of a failure only to who waits for the save. But its thread calls this once more while it handles the
    exception; there it must not wait for the others, which know nothing and write on.
    """

    def __init__(self):
        self.after_failure = False

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        if sys.exc_info()[0] is not None:
            self.after_failure = True
            return
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def _operating_system_reason(error: BaseException) -> str | None:
    """Tells why the operating system refused to write, or None if something else is wrong.

    The array writer reports such errors as ValueError with the number in its text.
    """
    match = re.search(r"os_error_code='(\d+)'", str(error))
    number = int(match[1]) if match else getattr(error, "errno", None)
    return None if number is None else os.strerror(number)
