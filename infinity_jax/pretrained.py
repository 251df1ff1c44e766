"""A trained system in one folder: config.json, tokenizer.safetensors, transformer.safetensors.

The same reader also takes the folders that training leaves, so `--checkpoint` accepts either.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from safetensors import SafetensorError
from safetensors.flax import load_file, save_file

from infinity_jax import optim, paths, scales
from infinity_jax.checkpoint import Checkpointer
from infinity_jax.config import TokenizerConfig, TransformerConfig, from_dict
from infinity_jax.errors import UserError

BUNDLED = "bundled"
_CONFIG, _TOKENIZER, _TRANSFORMER = "config.json", "tokenizer.safetensors", "transformer.safetensors"


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
        return scales.make_schedule(self.scales).last[0] * self.config.stride


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """Everything that turns prompts into pictures.

    Attributes:
      tokenizer: its decoder makes the pictures.
      config: the transformer's.
      params: the transformer's float32 parameters.
      text: how captions are read: {"encoder": name, "max_length": tokens}.
      source: the data it was trained on, a name that `data.sources` knows.
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
    if (folder / _CONFIG).is_file():
        values = _read_config(folder)
        config = from_dict(TokenizerConfig, values["tokenizer"], "tokenizer")
        params = _read_arrays(folder / _TOKENIZER)
        return TrainedTokenizer(config, params, values["scales"], values["origin"]["tokenizer"])
    if (folder / "tokenizer").is_dir():
        return load_tokenizer(folder / "tokenizer")
    from infinity_jax import train_tokenizer
    from infinity_jax.tokenizer.model import Tokenizer

    reader, run_config = _open_run(folder, "the tokenizer of an exported folder or of a training run")
    if "tokenizer" in run_config:
        raise UserError(
            f"{folder} holds a transformer's run but its folder tokenizer/ is missing; restore that folder"
        )
    config = from_dict(TokenizerConfig, run_config["model"], "model")
    preset = run_config["data"]["scales"]
    side = scales.make_schedule(preset).last[0] * config.stride
    target = jax.eval_shape(lambda: train_tokenizer.initial_params(Tokenizer(config), side, 0))
    return TrainedTokenizer(config, _restore(reader, target), preset, run_config)


def load_model(path: str | Path) -> TrainedModel:
    """The whole system of an exported folder or of a transformer's training workdir.

    Raises:
      UserError: the folder is missing or holds something else, or a file does not fit its config.
    """
    folder = resolve(path)
    if (folder / _CONFIG).is_file():
        values = _read_config(folder)
        if "transformer" not in values:
            raise UserError(f"{folder} holds a tokenizer only; to sample, give a transformer's checkpoint")
        config = from_dict(TransformerConfig, values["transformer"], "transformer")
        params = _read_arrays(folder / _TRANSFORMER)
        parts = (values["text"], values["source"], values["sample"], values["origin"]["transformer"])
    else:
        reader, run_config = _open_run(folder, "a trained model")
        if "tokenizer" not in run_config:
            raise UserError(f"{folder} holds a tokenizer's run; to sample, give a transformer's checkpoint")
        config = from_dict(TransformerConfig, run_config["model"], "model")
        params = _restore(reader, transformer_shapes(config))
        parts = (run_config["text"], run_config["data"]["source"], run_config["sample"], run_config)
    _check_shapes(folder, params, transformer_shapes(config))
    model = TrainedModel(load_tokenizer(folder), config, params, *parts)
    if model.tokenizer.config.bits != config.bits:
        raise UserError(
            f"{folder}: the tokenizer has {model.tokenizer.config.bits} bits a token, the transformer {config.bits}; "
            "they must be trained together"
        )
    return model


def load_transformer_params(path: str | Path, target: PyTree) -> PyTree:
    """Only the transformer's parameters, for a start from them; UserError if they are not like `target`."""
    params = load_model(path).params
    _check_shapes(resolve(path), params, target)
    return params


def transformer_shapes(config: TransformerConfig) -> PyTree:
    """The transformer's parameters as ShapeDtypeStructs."""
    from infinity_jax.model.transformer import init_params

    # Parameters do not depend on the schedule; the shortest is the cheapest to trace.
    schedule = scales.ScaleSchedule(((1, 1), (2, 2)), (2, 2))
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0), schedule))


def save_tokenizer(folder: Path, tokenizer: TrainedTokenizer, dtype: str = "float32") -> None:
    """Writes config.json and tokenizer.safetensors, weights in `dtype`: "float32", "bfloat16" or "float16"."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_arrays(folder / _TOKENIZER, tokenizer.params, dtype)
    _write_config(folder, _tokenizer_section(tokenizer), {})


def save_model(folder: Path, model: TrainedModel, dtype: str = "float32") -> None:
    """Writes the folder that `load_model` reads; weights in `dtype` as in `save_tokenizer`."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_arrays(folder / _TOKENIZER, model.tokenizer.params, dtype)
    _write_arrays(folder / _TRANSFORMER, model.params, dtype)
    transformer = {
        "transformer": dataclasses.asdict(model.config),
        "text": dict(model.text),
        "source": model.source,
        "sample": dict(model.sample),
    }
    _write_config(
        folder, _tokenizer_section(model.tokenizer) | transformer, {"transformer": dict(model.origin)}
    )


def _tokenizer_section(tokenizer: TrainedTokenizer) -> dict[str, Any]:
    config = dataclasses.asdict(tokenizer.config)
    return {"scales": tokenizer.scales, "tokenizer": config, "origin": {"tokenizer": dict(tokenizer.origin)}}


def _write_config(folder: Path, values: dict[str, Any], more_origin: dict[str, Any]) -> None:
    values = values | {"origin": values["origin"] | more_origin}
    _replace(folder / _CONFIG, lambda path: path.write_text(json.dumps(values, indent=1) + "\n"))


def has_transformer(folder: Path) -> bool:
    """Whether a checkpoint's folder holds a whole system, not a tokenizer alone."""
    if (folder / _CONFIG).is_file():
        return (folder / _TRANSFORMER).is_file()
    return (folder / "tokenizer").is_dir()


def _open_run(folder: Path, wanted: str) -> tuple[Checkpointer, dict[str, Any]]:
    if not (folder / "checkpoints").is_dir():
        raise UserError(f"{folder} has neither {_CONFIG} nor checkpoints/, so it is not {wanted}")
    reader = Checkpointer(folder / "checkpoints", read_only=True)
    return reader, reader.config()


def _restore(reader: Checkpointer, target: PyTree) -> PyTree:
    try:
        return reader.restore_params(target)
    finally:
        reader.close()


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / _CONFIG).read_text())
    except ValueError as error:
        raise UserError(
            f"{folder / _CONFIG} is not readable JSON ({error}); export the checkpoint again"
        ) from error
    if not isinstance(values, dict) or "tokenizer" not in values:
        raise UserError(
            f"{folder / _CONFIG} has no section 'tokenizer'; it is not a checkpoint of this project"
        )
    return values


def _read_arrays(path: Path) -> PyTree:
    try:
        flat = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot read the weights {path}: {error}; copy or export the checkpoint again"
        ) from error
    tree: dict[str, Any] = {}
    for name, array in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array.astype(jnp.float32)
    return tree


def _write_arrays(path: Path, params: PyTree, dtype: str) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    flat = {optim.parameter_name(key): jnp.asarray(leaf).astype(dtype) for key, leaf in leaves}
    _replace(path, lambda temporary: save_file(flat, temporary))


def _replace(path: Path, write) -> None:
    temporary = path.with_name(f".{path.name}.unfinished")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_shapes(folder: Path, params: PyTree, wanted: PyTree) -> None:
    have, want = (
        {optim.parameter_name(key): np.shape(leaf) for key, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (params, wanted)
    )
    for name in sorted(have.keys() | want.keys()):
        if have.get(name) != want.get(name):
            raise UserError(
                f"{folder} is of another model: {name} is {have.get(name, 'missing')} in the weights "
                f"and {want.get(name, 'missing')} by its config; export it again"
            )
