"""Trained systems by their path: loading, saving, exporting."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging
from jaxtyping import PyTree

from infinity_jax.checkpoints import folder as disk
from infinity_jax.checkpoints import origin, rotary
from infinity_jax.checkpoints.opened import on_host, open_checkpoint, resolve
from infinity_jax.checkpoints.trained import TrainedModel, TrainedTokenizer, TrainedUpscaler
from infinity_jax.files import atomic, checksums, paths


def load_tokenizer(path: str | Path) -> TrainedTokenizer:
    """Loads the tokenizer of an exported folder, of a tokenizer's workdir or of a transformer's workdir."""
    return open_checkpoint(path).tokenizer()


def load_model(path: str | Path) -> TrainedModel:
    """Loads the whole system of an exported folder or of a transformer's workdir. UserError if a part is amiss."""
    return open_checkpoint(path).model()


def load_on_host(path: str | Path) -> TrainedModel:
    """Loads as `load_model` does, with the weights in the host's memory."""
    with on_host():
        return load_model(path)


def save_tokenizer(folder: Path, tokenizer: TrainedTokenizer, dtype: str = "float32") -> None:
    """Writes config.json and tokenizer.safetensors, weights in `dtype`: "float32", "bfloat16" or "float16".

    Its origin is noted as it is, with paths of this machine: for a run's own copy. `export` leaves them out.
    """
    disk.check_dtype(dtype)
    with disk.changing(folder):
        _write_weights(folder, {"tokenizer": tokenizer.params}, dtype)
        disk.write_config(folder, _tokenizer_section(tokenizer))


def save_model(
    folder: Path, model: TrainedModel, dtype: str = "float32", upscaler: TrainedUpscaler | None = None
) -> None:
    """Writes the folder that `load_model` reads; weights in `dtype` as in `save_tokenizer`.

    A text encoder that lies in a folder is copied along, so that everything is in one place. Of paths that are noted of
    the runs the last name alone is kept.
    """
    disk.check_dtype(dtype)
    text = dict(model.text)
    values = _tokenizer_section(_without_paths(model.tokenizer))
    values["origin"]["transformer"] = origin.without_paths(dict(model.origin))
    values |= {"transformer": dataclasses.asdict(model.config), "sample": dict(model.sample), **rotary.MARK}
    values["source"] = origin.without_paths(model.source)
    parts = {"tokenizer": model.tokenizer.params, "transformer": model.params}
    if upscaler is not None:
        parts["upscaler"] = upscaler.params
        values["upscaler"] = dataclasses.asdict(upscaler.config)
        values["origin"]["upscaler"] = origin.without_paths(dict(upscaler.origin))
    with disk.changing(folder):
        _copy_text_encoder(text.pop("path", ""), folder / disk.TEXT_ENCODER)
        _write_weights(folder, parts, dtype)
        disk.write_config(folder, values | {"text": text})


def _write_weights(folder: Path, parts: Mapping[str, PyTree], dtype: str) -> None:
    with checksums.replacing(folder, *(disk.WEIGHTS[part] for part in parts)):
        for part, params in parts.items():
            disk.write_arrays(folder / disk.WEIGHTS[part], params, dtype)


def export(checkpoint: str, out: str | Path, dtype: str = "float16") -> None:
    """Writes `out` in the form that `--checkpoint`, `config.tokenizer` and `train.init_from` read.

    Args:
      checkpoint: a workdir of `train` (the whole system), of `train-upscaler` (that and the upscaler) or of
        `train-tokenizer` (a tokenizer alone).
      out: the folder to write; files there of the same names are replaced.
      dtype: of the weights on disk: "float32", "bfloat16" or "float16".
    """
    opened, out = open_checkpoint(checkpoint), Path(out)
    paths.check_not_read(out, "--out", resolve(checkpoint))
    if opened.has_transformer:
        save_model(out, opened.model(), dtype, opened.upscaler() if opened.has_upscaler else None)
    else:
        save_tokenizer(out, _without_paths(opened.tokenizer()), dtype)
    size = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    logging.info("wrote %s, %.1f MB", out, size / 1e6)


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
    return {
        "scales": tokenizer.scales,
        "tokenizer": config,
        "origin": {"tokenizer": dict(tokenizer.origin)},
    }


def _without_paths(tokenizer: TrainedTokenizer) -> TrainedTokenizer:
    return dataclasses.replace(tokenizer, origin=origin.without_paths(dict(tokenizer.origin)))
