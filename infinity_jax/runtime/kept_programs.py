"""Compiled programs in a folder, made on a machine that lacks the devices (`infinity-jax compile --warm`), for a run.

jax's own cache of programs cannot do this: what is compiled for devices that are only described is not kept by it.
"""

import dataclasses
import hashlib
import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.experimental import serialize_executable

from infinity_jax.files import atomic
from infinity_jax.runtime.sharding import Layout

# A program's file begins with the hash of what follows.
_HASH_BYTES = 32


@dataclasses.dataclass(frozen=True)
class KeptPrograms:
    """The programs of a folder, each known by what it was compiled from, so that none is run in another's place.

    Attributes:
      folder: where they lie; it need not be there.
      devices: those of the mesh that they are for, in order; of a topology they exist only as a description.
    """

    folder: Path
    devices: tuple[Any, ...]

    def path(self, lowered: jax.stages.Lowered) -> Path:
        """Names the file of a program: by its text, kind and number of devices, and the versions of what compiles."""
        first = self.devices[0]
        parts = [lowered.as_text(), first.platform, first.device_kind, str(len(self.devices)), *_versions()]
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.program"

    def count(self) -> int:
        """Counts the programs in the folder."""
        return len(list(self.folder.glob("*.program")))

    def keep(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled | None:
        """Compiles a program and writes it, to be run by `load` elsewhere; None if it is there already."""
        path = self.path(lowered)
        if path.is_file():
            return None
        compiled = lowered.compile()
        content, _, _ = serialize_executable.serialize(compiled)
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(path, hashlib.sha256(content).digest() + content)
        return compiled

    def compiler(self) -> Callable[[jax.stages.Lowered], jax.stages.Compiled]:
        """Chooses what compiles a run's programs: `load`, but not on CPUs.

        Their runtime may lose functions of a large program that was kept (jax 0.12: "Function copy_bitcast_fusion.55
        not found", at its first call); and they have jax's own cache.
        """
        return jax.stages.Lowered.compile if self.devices[0].platform == "cpu" else self.load

    def load(self, lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        """Reads the program that was compiled from this one; compiles it where there is none that can be run."""
        path = self.path(lowered) if self.folder.is_dir() else None
        if path is None or not path.is_file():
            return lowered.compile()
        if hasattr(os, "getuid") and path.stat().st_uid not in (os.getuid(), 0):
            logging.warning("%s is another user's, who could run code here with it: compiling anew", path)
            return lowered.compile()
        whole = path.read_bytes()
        content = whole[_HASH_BYTES:]
        if hashlib.sha256(content).digest() != whole[:_HASH_BYTES]:
            logging.warning("%s is damaged: compiling anew", path)
            return lowered.compile()
        trees: Any = lowered
        try:
            compiled = serialize_executable.deserialize_and_load(
                content, trees.in_tree, trees.out_tree, execution_devices=self.devices
            )
        # Whatever it is that the runtime does not like of another machine's program, compiling still works.
        except Exception as error:
            logging.warning("%s cannot be run here (%s): compiling anew", path, error)
            return lowered.compile()
        logging.info("%s was compiled before", path)
        return compiled


def of_run(workdir: Path, layout: Layout) -> KeptPrograms:
    """Finds the programs that were compiled for a run before it."""
    devices: Any = layout.mesh.devices
    return KeptPrograms(workdir / "programs", tuple(devices.flat))


def _versions() -> list[str]:
    """Lists the versions of what compiles: a program of another one may be refused, or be wrong."""
    names = ("jax", "jaxlib", "libtpu", "jax-cuda12-pjrt", "jax-cuda13-pjrt")
    versions = []
    for name in names:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
