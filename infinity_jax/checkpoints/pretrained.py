"""A trained system in memory, from a folder to share (`checkpoint_folder`) or from one that training left."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from jaxtyping import PyTree

from infinity_jax import scales
from infinity_jax.checkpoints import folder as disk
from infinity_jax.config import TokenizerConfig, TransformerConfig, from_dict
from infinity_jax.errors import UserError
from infinity_jax.files import atomic, paths
from infinity_jax.runtime import trees
from infinity_jax.runtime.sharding import Layout, place

if TYPE_CHECKING:
    from infinity_jax.checkpoints.run import Checkpointer

BUNDLED = "bundled"


@dataclasses.dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer with its weights.

    Attributes:
      config: what it is.
      params: float32 parameters, nested dicts.
      scales: name of the scale preset that it is used with.
      origin: commit, command and config of the run that made it, for the record.
    """

    config: TokenizerConfig
    params: PyTree
    scales: str
    origin: Mapping[str, Any]

    @property
    def side(self) -> int:
        """Height and width in pixels of its square pictures."""
        return scales.make_schedule(self.scales).last[0] * self.config.transformer_stride


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """Everything that turns prompts into pictures.

    Attributes:
      tokenizer: its decoder makes the pictures.
      config: the transformer's.
      params: the transformer's float32 parameters.
      text: how captions are read: {"encoder": name, "max_length": tokens}, and "path" where the encoder needs one.
      source: the data it was trained on, a name that `data.sources` knows; "" if unknown.
      sample: the best known sampling settings: {"cfg", "tau", "top_p", "guidance"}.
      origin: commit, command and config of the transformer's run, for the record.
    """

    tokenizer: TrainedTokenizer
    config: TransformerConfig
    params: PyTree
    text: Mapping[str, Any]
    source: str
    sample: Mapping[str, Any]
    origin: Mapping[str, Any]


def resolve(path: str | Path) -> Path:
    """A checkpoint's folder; "bundled" is the one shipped with the package. Raises UserError if it is missing."""
    folder = paths.bundled_checkpoint() if str(path) == BUNDLED else Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"no checkpoint folder {folder}; give a training workdir or an exported folder")
    return folder


def load_tokenizer(path: str | Path) -> TrainedTokenizer:
    """The tokenizer of an exported folder, of a tokenizer's workdir or of a transformer's workdir."""
    folder = resolve(path)
    if (folder / disk.CONFIG).is_file():
        values = disk.read_config(folder)
        _require(folder, values, "tokenizer")
        config = from_dict(TokenizerConfig, values["tokenizer"], "tokenizer")
        params = disk.read_arrays(folder / disk.WEIGHTS["tokenizer"])
        _check_shapes(folder, params, tokenizer_shapes(config))
        return TrainedTokenizer(config, params, values["scales"], _origin(values, "tokenizer"))
    if (folder / "tokenizer").is_dir():
        return load_tokenizer(folder / "tokenizer")
    reader, run_config = _open_run(folder, "the tokenizer of an exported folder or of a training run")
    if "tokenizer" in run_config:
        raise UserError(
            f"{folder} holds a transformer's run but its folder tokenizer/ is missing; restore that folder"
        )
    config = from_dict(TokenizerConfig, run_config["model"], "model")
    params = _restore(reader, tokenizer_shapes(config))
    return TrainedTokenizer(config, params, run_config["data"]["scales"], run_config)


def load_model(path: str | Path) -> TrainedModel:
    """The whole system of an exported folder or of a transformer's training workdir.

    Raises:
      UserError: the folder is missing or holds something else, or a file does not fit its config.
    """
    folder = resolve(path)
    if (folder / disk.CONFIG).is_file():
        values = disk.read_config(folder)
        for part in (*disk.WEIGHTS, "text", "sample", "scales"):
            _require(folder, values, part)
        disk.check_fit(folder, values)
        config = from_dict(TransformerConfig, values["transformer"], "transformer")
        params = disk.read_arrays(folder / disk.WEIGHTS["transformer"])
        text = _with_folder(folder, values["text"])
        parts = (text, values.get("source", ""), values["sample"], _origin(values, "transformer"))
    else:
        reader, run_config = _open_run(folder, "a trained model")
        if "tokenizer" not in run_config:
            raise UserError(f"{folder} holds a tokenizer's run; to sample, give a transformer's checkpoint")
        config = from_dict(TransformerConfig, run_config["model"], "model")
        params = _restore(reader, transformer_shapes(config))
        parts = (run_config["text"], run_config["data"]["source"], run_config["sample"], run_config)
    _check_shapes(folder, params, transformer_shapes(config))
    return TrainedModel(load_tokenizer(folder), config, params, *parts)


_OF_THIS_RUN = "this run's config; start from another checkpoint, or make config.model the same"


def load_transformer_params(path: str | Path, target: PyTree) -> PyTree:
    """Only the transformer's parameters, for a start from them.

    From a training run they lie like `target` at once, from a folder in the host's memory: no device gets the whole.

    Raises:
      UserError: they are not like `target`.
    """
    folder = resolve(path)
    if not (folder / disk.CONFIG).is_file():
        reader, run_config = _open_run(folder, "a trained model")
        if "tokenizer" not in run_config:
            raise UserError(
                f"{folder} holds a tokenizer's run; to start from it, give a transformer's checkpoint"
            )
        return _restore(reader, target)
    params = load_on_host(folder).params
    _check_shapes(folder, params, target, _OF_THIS_RUN)
    return params


def load_tokenizer_params(path: str | Path, target: PyTree) -> PyTree:
    """Only the tokenizer's parameters, for a start from them. Raises UserError if they are not like `target`."""
    params = load_tokenizer(path).params
    _check_shapes(resolve(path), params, target, _OF_THIS_RUN)
    return params


def load_on_host(path: str | Path) -> TrainedModel:
    """`load_model`, with the weights in the host's memory, to be laid out over devices from there."""
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return load_model(path)


def placed(model: TrainedModel, layout: Layout) -> TrainedModel:
    """The same system with its weights laid out over a mesh; what lies so already is not moved."""
    wanted = (
        layout.of(transformer_variables(model.config)),
        layout.of(tokenizer_variables(model.tokenizer.config)),
    )
    params, tokenizer_params = (
        jax.tree.map(place, tree, shardings)
        for tree, shardings in zip((model.params, model.tokenizer.params), wanted, strict=True)
    )
    tokenizer = dataclasses.replace(model.tokenizer, params=tokenizer_params)
    return dataclasses.replace(model, params=params, tokenizer=tokenizer)


def transformer_variables(config: TransformerConfig) -> PyTree:
    """The transformer's parameters as ShapeDtypeStructs, boxed with their logical axis names."""
    from infinity_jax.transformer.transformer import init_variables

    # Parameters do not depend on the schedule; all presets begin so, and the shortest is the cheapest to trace.
    schedule = scales.ScaleSchedule(((1, 1), (2, 2)), (2, 2))
    return jax.eval_shape(lambda: init_variables(config, jax.random.key(0), schedule)["params"])


def tokenizer_variables(config: TokenizerConfig) -> PyTree:
    """The tokenizer's parameters as ShapeDtypeStructs, boxed with their logical axis names."""
    from infinity_jax.tokenizer.model import Tokenizer, initial_variables

    return jax.eval_shape(lambda: initial_variables(Tokenizer(config), config.stride, 0))


def transformer_shapes(config: TransformerConfig) -> PyTree:
    """The transformer's parameters as ShapeDtypeStructs."""
    return nn.meta.unbox(transformer_variables(config))


def tokenizer_shapes(config: TokenizerConfig) -> PyTree:
    """The tokenizer's parameters as ShapeDtypeStructs."""
    return nn.meta.unbox(tokenizer_variables(config))


def save_tokenizer(folder: Path, tokenizer: TrainedTokenizer, dtype: str = "float32") -> None:
    """Writes config.json and tokenizer.safetensors, weights in `dtype`: "float32", "bfloat16" or "float16"."""
    disk.check_dtype(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    disk.write_arrays(folder / disk.WEIGHTS["tokenizer"], tokenizer.params, dtype)
    disk.write_config(folder, _tokenizer_section(tokenizer))


def save_model(folder: Path, model: TrainedModel, dtype: str = "float32") -> None:
    """Writes the folder that `load_model` reads; weights in `dtype` as in `save_tokenizer`.

    A text encoder that lies in a folder is copied along, so that everything is in one place.
    """
    disk.check_dtype(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    text = dict(model.text)
    _copy_text_encoder(text.pop("path", ""), folder / disk.TEXT_ENCODER)
    disk.write_arrays(folder / disk.WEIGHTS["tokenizer"], model.tokenizer.params, dtype)
    disk.write_arrays(folder / disk.WEIGHTS["transformer"], model.params, dtype)
    values = _tokenizer_section(model.tokenizer)
    values["origin"]["transformer"] = dict(model.origin)
    transformer = {"transformer": dataclasses.asdict(model.config), "text": text}
    disk.write_config(folder, values | transformer | {"source": model.source, "sample": dict(model.sample)})


def _copy_text_encoder(source: str, target: Path) -> None:
    """Copies a text encoder's folder, whole or not at all, in the place of what another system left there."""
    if source and target.exists() and Path(source).samefile(target):
        return
    atomic.remove_unfinished([target])
    if not source:
        if target.exists():
            shutil.rmtree(target)
        return
    with atomic.writing_folder(target) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
        if target.exists():
            shutil.rmtree(target)


def _tokenizer_section(tokenizer: TrainedTokenizer) -> dict[str, Any]:
    config = dataclasses.asdict(tokenizer.config)
    return {"scales": tokenizer.scales, "tokenizer": config, "origin": {"tokenizer": dict(tokenizer.origin)}}


def has_transformer(folder: Path) -> bool:
    """Whether a checkpoint's folder holds a whole system, not a tokenizer alone."""
    if (folder / disk.CONFIG).is_file():
        return (folder / disk.WEIGHTS["transformer"]).is_file()
    return (folder / "tokenizer").is_dir()


def _open_run(folder: Path, wanted: str) -> tuple["Checkpointer", dict[str, Any]]:
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"{folder} has neither {disk.CONFIG} nor checkpoints/, so it is not {wanted}")
    from infinity_jax.checkpoints.run import Checkpointer  # orbax takes a while to import

    reader = Checkpointer(folder / "checkpoints", read_only=True)
    return reader, reader.config()


def _origin(values: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    return values.get("origin", {}).get(part, {})


def _require(folder: Path, values: Mapping[str, Any], part: str) -> None:
    if part in values:
        return
    held = ", ".join(values)
    remedy = "export or convert it again"
    if part in disk.WEIGHTS:
        remedy = f"add it: infinity-jax convert --from FILE --kind {part} --config NAME --out {folder}"
    raise UserError(f"{folder} holds no {part} (it holds: {held}); give another checkpoint, or {remedy}")


def _with_folder(folder: Path, text: Mapping[str, Any]) -> dict[str, Any]:
    """How captions are read, with the absolute path of the text encoder's folder if it has one."""
    if text["encoder"] == "minilm":
        return dict(text)
    return {**text, "path": str((folder / (text.get("path") or disk.TEXT_ENCODER)).absolute())}


def _restore(reader: "Checkpointer", target: PyTree) -> PyTree:
    try:
        return reader.restore_params(target)
    finally:
        reader.close()


def _check_shapes(
    folder: Path, params: PyTree, wanted: PyTree, whose: str = "its config; export it again"
) -> None:
    have, want = (
        {trees.parameter_name(key): np.shape(leaf) for key, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (params, wanted)
    )
    for name in sorted(have.keys() | want.keys()):
        if have.get(name) != want.get(name):
            raise UserError(
                f"{folder} is of another model: {name} is {have.get(name, 'missing')} in the weights "
                f"and {want.get(name, 'missing')} by {whose}"
            )


def main(checkpoint: str, out: str | Path, dtype: str = "float16") -> None:
    """Writes `out` in the form that `--checkpoint`, `config.tokenizer` and `train.init_from` read.

    Args:
      checkpoint: a workdir of `train` (the whole system) or of `train-tokenizer` (a tokenizer alone).
      out: the folder to write; files there of the same names are replaced.
      dtype: of the weights on disk: "float32", "bfloat16" or "float16".
    """
    folder, out = resolve(checkpoint), Path(out)
    if has_transformer(folder):
        save_model(out, load_model(folder), dtype)
    else:
        save_tokenizer(out, load_tokenizer(folder), dtype)
    size = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    logging.info("wrote %s, %.1f MB", out, size / 1e6)
