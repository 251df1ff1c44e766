"""A checkpoint that is read: a folder to share (`checkpoints/folder.py`) or the workdir that training left.

Both answer alike. All but `origin`, {} if unknown, raise UserError where a part is missing, damaged, or not like the
`target` it is to replace.
"""

import contextlib
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jaxtyping import PyTree

from infinity_jax.checkpoints import folder as disk
from infinity_jax.checkpoints import rotary
from infinity_jax.checkpoints.trained import (
    Placing,
    TrainedModel,
    TrainedTokenizer,
    TrainedUpscaler,
    tokenizer_shapes,
    tokenizer_variables,
    transformer_placing,
    transformer_shapes,
    upscaler_shapes,
)
from infinity_jax.checkpoints.upscaler_run import NOTE, UpscalerRun, system_of
from infinity_jax.config import TokenizerConfig, TransformerConfig, UpscalerConfig
from infinity_jax.config_files import from_dict
from infinity_jax.errors import UserError
from infinity_jax.files import paths
from infinity_jax.runtime import trees
from infinity_jax.runtime.sharding import Layout

if TYPE_CHECKING:
    from infinity_jax.checkpoints.run import Checkpointer

BUNDLED = "bundled"
_OWN_CONFIG = "its config; export it again"
_THIS_RUN = "this run's config; start from another checkpoint, or make config.model the same"


def resolve(path: str | Path) -> Path:
    """Finds a checkpoint's folder; "bundled" is the one in the package. Raises UserError if it is missing."""
    folder = paths.bundled_checkpoint() if str(path) == BUNDLED else Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"no checkpoint folder {folder}; give a training workdir or an exported folder")
    return folder


def open_checkpoint(path: str | Path) -> "ExportedFolder | TrainingRun | UpscalerRun":
    """Opens an exported or converted folder, a run's workdir, or "bundled". UserError if it is none or damaged."""
    folder = resolve(path)
    if (folder / disk.CONFIG).is_file():
        return ExportedFolder(folder)
    if (folder / NOTE).is_file():
        return UpscalerRun(folder, open_checkpoint(system_of(folder)))
    if (folder / "checkpoints").is_dir() or (folder / "tokenizer").is_dir():
        return TrainingRun(folder)
    raise UserError(
        f"{folder} has neither {disk.CONFIG} nor checkpoints/, so it is neither an exported folder nor a training run"
    )


class ExportedFolder:
    """A folder to share, written by `export` or `convert`. Weights become float32 on jax's default device."""

    def __init__(self, folder: Path):
        self._folder, self._config = folder, disk.read_config(folder)

    @property
    def has_transformer(self) -> bool:
        """Whether it holds a whole system."""
        return (self._folder / disk.WEIGHTS["transformer"]).is_file()

    @property
    def has_upscaler(self) -> bool:
        """Whether it holds an upscaler besides."""
        return "upscaler" in self._config

    def origin(self, part: str) -> Mapping[str, Any]:
        """Tells what config.json notes of the run that made the part."""
        return self._config.get("origin", {}).get(part, {})

    def tokenizer(self, layout: Layout | None = None) -> TrainedTokenizer:
        """Reads the tokenizer, laid out over `layout`, or on jax's default device."""
        config = from_dict(TokenizerConfig, self._section("tokenizer"), "tokenizer")
        place = Placing.of(tokenizer_variables(config), layout=layout)
        params = self._params("tokenizer", tokenizer_shapes(config), _OWN_CONFIG, place)
        return TrainedTokenizer(config, params, self._section("scales"), self.origin("tokenizer"))

    def transformer_config(self) -> TransformerConfig:
        """Tells what the transformer is, once it is clear that all parts are there and belong together."""
        for name in (*disk.SYSTEM, "text", "sample", "scales"):
            self._section(name)
        disk.check_fit(self._folder, self._config)
        return from_dict(TransformerConfig, self._section("transformer"), "transformer")

    def model(self, layout: Layout | None = None, rounded: bool = False) -> TrainedModel:
        """Reads the whole system.

        Args:
          layout: over which its arrays are laid out, one by one as they are read; None is jax's default device.
          rounded: whether the transformer's become what drawing needs, see `stored_dtypes`, else float32.
        """
        config = self.transformer_config()
        place = transformer_placing(config, layout, rounded)
        params = self._params("transformer", transformer_shapes(config), _OWN_CONFIG, place)
        return TrainedModel(
            tokenizer=self.tokenizer(layout),
            config=config,
            params=params,
            text=self._text(),
            source=self._config.get("source", ""),
            sample=self._section("sample"),
            origin=self.origin("transformer"),
        )

    def upscaler(self) -> TrainedUpscaler:
        """Reads the upscaler."""
        config = from_dict(UpscalerConfig, self._section("upscaler"), "upscaler")
        params = self._params("upscaler", upscaler_shapes(config), _OWN_CONFIG)
        return TrainedUpscaler(config, params, self.origin("upscaler"))

    def upscaler_params(self, target: PyTree) -> PyTree:
        """Reads the upscaler's parameters."""
        return self._params("upscaler", target, _THIS_RUN)

    def tokenizer_params(self, target: PyTree) -> PyTree:
        """Reads the tokenizer's parameters."""
        return self._params("tokenizer", target, _THIS_RUN)

    def transformer_params(self, target: PyTree) -> PyTree:
        """Reads the transformer's parameters into the host's memory: no device gets the whole."""
        with on_host():
            return self._params("transformer", target, _THIS_RUN)

    def _params(self, part: str, wanted: PyTree, whose: str, place: Placing | None = None) -> PyTree:
        self._section(part)
        want = trees.shapes(wanted)

        def check(have: Mapping[str, tuple[int, ...]]) -> None:
            for name in sorted(have.keys() | want.keys()):
                if have.get(name) != want.get(name):
                    raise UserError(
                        f"{self._folder} is of another model: {name} is {have.get(name, 'missing')} in the weights "
                        f"and {want.get(name, 'missing')} by {whose}"
                    )

        kept = place or disk.on_default_device
        if part == "transformer":
            kept = rotary.placing_in_halves(kept, self._config)
        return disk.read_arrays(self._folder / disk.WEIGHTS[part], kept, check)

    def _section(self, name: str) -> Any:
        if name in self._config:
            return self._config[name]
        remedy = "export or convert it again"
        if name in disk.WEIGHTS:
            remedy = (
                f"add it: infinity-jax convert --from FILE --kind {name} --config NAME --out {self._folder}"
            )
        raise UserError(
            f"{self._folder} holds no {name} (it holds: {', '.join(self._config)}); give another checkpoint, "
            f"or {remedy}"
        )

    def _text(self) -> dict[str, Any]:
        """How captions are read, with the absolute path of the text encoder's folder if it has one."""
        text = self._section("text")
        if text["encoder"] == "minilm":
            return dict(text)
        return {**text, "path": str((self._folder / (text.get("path") or disk.TEXT_ENCODER)).absolute())}


class TrainingRun:
    """The workdir of `train` or of `train-tokenizer`: its newest checkpoint, averaged weights where it kept them."""

    has_upscaler = False

    def __init__(self, folder: Path):
        self._folder = folder

    @functools.cached_property
    def _config(self) -> dict[str, Any]:
        with self._reader() as reader:
            return reader.config()

    def _reader(self) -> contextlib.closing["Checkpointer"]:
        from infinity_jax.checkpoints.run import Checkpointer  # orbax takes a while to import

        return contextlib.closing(Checkpointer(self._folder / "checkpoints", read_only=True))

    @property
    def has_transformer(self) -> bool:
        """Whether it is a transformer's run, which keeps a copy of its tokenizer."""
        return (self._folder / "tokenizer").is_dir()

    def origin(self, part: str) -> Mapping[str, Any]:
        """Tells the run's config, commit and command; of a transformer's run's tokenizer, what the copy notes."""
        return self._copy().origin(part) if part == "tokenizer" and self.has_transformer else self._config

    def tokenizer(self, layout: Layout | None = None) -> TrainedTokenizer:
        """Reads the tokenizer: the run's own, or the copy that a transformer's run keeps."""
        if self.has_transformer:
            return self._copy().tokenizer(layout)
        self._check_kind("tokenizer")
        config = from_dict(TokenizerConfig, self._config["model"], "model")
        params = self._restore(tokenizer_shapes(config))
        return TrainedTokenizer(config, params, self._config["data"]["scales"], self._config)

    def transformer_config(self) -> TransformerConfig:
        """Tells what the transformer is."""
        self._check_kind("transformer")
        return from_dict(TransformerConfig, self._config["model"], "model")

    def model(self, layout: Layout | None = None, rounded: bool = False) -> TrainedModel:
        """Reads the whole system; arguments as of `ExportedFolder.model`, without a layout in the host's memory."""
        config = self.transformer_config()
        place = transformer_placing(config, layout, rounded)
        params = self._restore(place.targets(transformer_shapes(config)))
        if rounded:
            params = place.each(params)
        return TrainedModel(
            tokenizer=self.tokenizer(layout),
            config=config,
            params=params,
            text=self._config["text"],
            source=self._config["data"]["source"],
            sample=self._config["sample"],
            origin=self._config,
        )

    def tokenizer_params(self, target: PyTree) -> PyTree:
        """Reads the tokenizer's parameters; of its own run they lie like `target`."""
        if self.has_transformer:
            return self._copy().tokenizer_params(target)
        self._check_kind("tokenizer")
        return self._restore(target)

    def transformer_params(self, target: PyTree) -> PyTree:
        """Reads the transformer's parameters, which lie like `target` at once: no device gets the whole."""
        self._check_kind("transformer")
        return self._restore(target)

    def upscaler(self) -> TrainedUpscaler:
        """Raises UserError: it has none."""
        raise UserError(f"{self._folder} holds no upscaler; train one: infinity-jax train-upscaler")

    def upscaler_params(self, target: PyTree) -> PyTree:
        """Raises UserError: it has none."""
        return self.upscaler()

    def _copy(self) -> ExportedFolder:
        return ExportedFolder(self._folder / "tokenizer")

    def _restore(self, target: PyTree) -> PyTree:
        with self._reader() as reader:
            return reader.restore_params(target)

    def _check_kind(self, part: str) -> None:
        """Raises UserError unless the run trains `part`."""
        trains_transformer = "tokenizer" in self._config
        if part == "transformer" and not trains_transformer:
            raise UserError(f"{self._folder} holds a tokenizer's run; give a transformer's checkpoint")
        if part == "tokenizer" and trains_transformer:
            raise UserError(
                f"{self._folder} holds a transformer's run but its folder tokenizer/ is missing; restore that folder"
            )


def on_host() -> contextlib.AbstractContextManager[Any]:
    """Lets what is read within lie in the host's memory, to be laid out over devices from there."""
    return jax.default_device(jax.local_devices(backend="cpu")[0])
