"""The workdir of `train-upscaler`, read as a checkpoint: the system that it began with, and what it has trained."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from jaxtyping import PyTree

from infinity_jax.checkpoints.trained import (
    TrainedModel,
    TrainedTokenizer,
    TrainedUpscaler,
    transformer_placing,
    transformer_shapes,
    upscaler_shapes,
)
from infinity_jax.config import TransformerConfig, UpscalerConfig
from infinity_jax.config_files import from_dict
from infinity_jax.errors import UserError
from infinity_jax.files import atomic, reading
from infinity_jax.runtime.sharding import Layout

# Names the system in a workdir; whole systems are large, so that it is no copy.
NOTE = "system.json"
NETWORK, TRANSFORMER = "network", "transformer"


class System(Protocol):
    """What is asked of the checkpoint that the run began with, see `opened`."""

    @property
    def has_upscaler(self) -> bool: ...
    def origin(self, part: str) -> Mapping[str, Any]: ...
    def tokenizer(self, layout: Layout | None = None) -> TrainedTokenizer: ...
    def transformer_config(self) -> TransformerConfig: ...
    def model(self, layout: Layout | None = None, rounded: bool = False) -> TrainedModel: ...
    def tokenizer_params(self, target: PyTree) -> PyTree: ...
    def transformer_params(self, target: PyTree) -> PyTree: ...


def note_system(workdir: Path, path: str, fingerprint: str) -> None:
    """Notes which system a run begins with, and the fingerprint of its tokenizer."""
    place = Path(path).expanduser()
    whole = str(place.absolute()) if place.is_dir() else path  # or a name, like "bundled"
    atomic.write_json(workdir / NOTE, {"system": whole, "tokenizer": fingerprint})


def check_system(workdir: Path, path: str, fingerprint: str) -> None:
    """Raises UserError where a run goes on and its system's tokenizer is another one than it began with."""
    noted = reading.read_object(workdir / NOTE, "restore that file").get("tokenizer")
    if noted != fingerprint:
        raise UserError(
            f"{workdir} began with another tokenizer than that of {path}: its system was {system_of(workdir)}; name "
            "that, or begin in another --workdir"
        )


def system_of(workdir: Path) -> str:
    """Returns the path of the system that a run began with. UserError where it is noted nowhere."""
    path = reading.read_object(workdir / NOTE, "restore that file").get("system")
    if not isinstance(path, str):
        raise UserError(f"{workdir / NOTE} names no system; restore that file")
    return path


class UpscalerRun:
    """Its newest checkpoint, averaged weights where it kept them; what it did not train is the system's."""

    has_transformer = has_upscaler = True

    def __init__(self, folder: Path, system: System):
        self._folder, self._system = folder, system

    @functools.cached_property
    def _config(self) -> dict[str, Any]:
        with self._reader() as reader:
            return reader.config()

    def _reader(self) -> contextlib.closing:
        from infinity_jax.checkpoints.run import Checkpointer  # orbax takes a while to import

        return contextlib.closing(Checkpointer(self._folder / "checkpoints", read_only=True))

    def origin(self, part: str) -> Mapping[str, Any]:
        """Tells the run's config, commit and command, of what it trained; else what the system notes."""
        trained = part == "upscaler" or (part == TRANSFORMER and self._config["stage"] == 2)
        return self._config if trained else self._system.origin(part)

    def tokenizer(self, layout: Layout | None = None) -> TrainedTokenizer:
        """Reads the system's tokenizer; UserError where that is another one than it was."""
        tokenizer = self._system.tokenizer(layout)
        noted = reading.read_object(self._folder / NOTE, "restore that file").get("tokenizer")
        if tokenizer.fingerprint != noted:
            raise UserError(
                f"{system_of(self._folder)} has another tokenizer than when {self._folder} began; put the system back"
            )
        return dataclasses.replace(tokenizer, scales=self._config["data"]["scales"])

    def transformer_config(self) -> TransformerConfig:
        """Tells what the transformer is."""
        return self._system.transformer_config()

    def model(self, layout: Layout | None = None, rounded: bool = False) -> TrainedModel:
        """Reads the whole system, with the transformer that stage 2 has trained."""
        base = self._system.model(layout, rounded)
        tokenizer, sample = self.tokenizer(layout), self._config["sample"]
        if self._config["stage"] == 1:
            return dataclasses.replace(base, tokenizer=tokenizer, sample=sample)
        place = transformer_placing(base.config, layout, rounded)
        params = self._restored(place.targets(transformer_shapes(base.config)))
        params = place.each(params) if rounded else params
        origin = self.origin(TRANSFORMER)
        return dataclasses.replace(base, tokenizer=tokenizer, sample=sample, params=params, origin=origin)

    def upscaler(self) -> TrainedUpscaler:
        """Reads the upscaler."""
        config = from_dict(UpscalerConfig, self._config["upscaler"], "upscaler")
        return TrainedUpscaler(config, self.upscaler_params(upscaler_shapes(config)), self._config)

    def upscaler_params(self, target: PyTree) -> PyTree:
        """Reads the upscaler's parameters, which lie like `target` at once."""
        wanted = {NETWORK: target}
        if self._config["stage"] == 2:
            wanted[TRANSFORMER] = transformer_shapes(self.transformer_config())
        with self._reader() as reader:
            return reader.restore_params(wanted)[NETWORK]

    def tokenizer_params(self, target: PyTree) -> PyTree:
        """Reads the tokenizer's parameters."""
        return self._system.tokenizer_params(target)

    def transformer_params(self, target: PyTree) -> PyTree:
        """Reads the transformer's parameters, which lie like `target`."""
        return (
            self._system.transformer_params(target) if self._config["stage"] == 1 else self._restored(target)
        )

    def _restored(self, target: PyTree) -> PyTree:
        config = from_dict(UpscalerConfig, self._config["upscaler"], "upscaler")
        with self._reader() as reader:
            restored = reader.restore_params({NETWORK: upscaler_shapes(config), TRANSFORMER: target})
        return restored[TRANSFORMER]
