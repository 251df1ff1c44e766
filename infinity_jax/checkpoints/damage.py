"""Damage to checkpoints of runs: checksums written with each, compared when it is read, one message for the rest."""

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from infinity_jax.errors import UserError
from infinity_jax.files import checksums

ITEMS = ("config", "data", "state")
# orbax writes these when the checkpoint takes its name; nothing that is read here stands in them.
_OF_ORBAX = ("_CHECKPOINT_METADATA", "commit_success.txt")


class SealedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """orbax's unfinished folder of a checkpoint, which gets its checksums before it gets its name.

    That is in the background too, on the process that gives the name.
    """

    async def finalize(self):
        """Writes checksums.json, then gives the folder its name."""
        await asyncio.to_thread(_seal, Path(self.get()))
        await super().finalize()


def _seal(folder: Path) -> None:
    files = (path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    checksums.write(folder, checksums.compute(folder, [name for name in names if name not in _OF_ORBAX]))


@dataclasses.dataclass(frozen=True)
class Steps:
    """The checkpoints of a run.

    Attributes:
      directory: their folder.
      steps: of all.
    """

    directory: Path
    steps: Sequence[int]

    @contextlib.contextmanager
    def reading(self, step: int, *items: str) -> Iterator[None]:
        """Compares `items` of a checkpoint with their checksums before the block reads them.

        Of several processes, which must all be here, each compares a part of the files.

        Raises:
          UserError: a file is damaged or the block fails; it names that and the newest earlier checkpoint that is
            whole. A UserError of the block is raised as it is.
        """
        folder = self.directory / str(step)
        # Not at the same time: reads of orbax that fail leave others unfinished.
        with explained(folder, lambda: self.remedy(step)):
            known = checksums.read(folder)
            names = sorted(name for name in known if name.split("/")[0] in items)
            here = names[jax.process_index() :: jax.process_count()]
            damaged = _of_all(checksums.changed(folder, {name: known[name] for name in here}), names)
        if damaged:
            checksums.raise_damaged(folder, damaged, self.remedy(step))
        with explained(folder, lambda: self.remedy(step)):
            yield

    def remedy(self, step: int) -> str:
        """Says what to do without the checkpoint of `step`."""
        earlier = (other for other in sorted(self.steps, reverse=True) if other < step)
        whole = next((other for other in earlier if self._is_whole(other)), None)
        if whole is None:
            return (
                f"there is no earlier one that is whole; restore it, or remove {self.directory} to begin anew"
            )
        return (
            f"the newest whole one before it is that of step {whole}: to go on from there remove "
            f"{self.directory / str(step)} and run the same command again"
        )

    def _is_whole(self, step: int) -> bool:
        folder = self.directory / str(step)
        if not all((folder / item).is_dir() and any((folder / item).iterdir()) for item in ITEMS):
            return False
        try:
            return not checksums.changed(folder, checksums.read(folder))
        except (UserError, OSError):
            return False


def _of_all(damaged: Mapping[str, str], names: Sequence[str]) -> Mapping[str, str]:
    """Tells every process what any of them has found: one of the damaged files."""
    if jax.process_count() == 1:
        return damaged
    first = next((number for number, name in enumerate(names) if name in damaged), -1)
    number = int(np.max(multihost_utils.process_allgather(np.int32(first))))
    return {} if number < 0 else {names[number]: "is not what was written"}


@contextlib.contextmanager
def explained(folder: Path, remedy: Callable[[], str]) -> Iterator[None]:
    """Turns whatever is raised while a checkpoint is read into UserError with the folder and a remedy.

    Args:
      remedy: makes the text; called after a failure only.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, asyncio.CancelledError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise
        _leave_out_what_was_not_awaited()
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"the checkpoint {folder} cannot be read ({words[:300]}); {remedy()}") from error


@functools.cache
def _leave_out_what_was_not_awaited() -> None:
    """Keeps the traces of reads that orbax leaves behind when another one fails, whenever they end, from the screen."""
    show = sys.unraisablehook

    def show_others(unraisable: Any) -> None:
        if not inspect.iscoroutine(unraisable.object) and str(unraisable.exc_value) != "Event loop is closed":
            show(unraisable)

    sys.unraisablehook = show_others
