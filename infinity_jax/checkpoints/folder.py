"""A checkpoint to share, on disk: config.json, weights as safetensors, and the text encoder's folder if it needs one.

    config.json                what the parts are and where they come from
    tokenizer.safetensors      paths of parameters, joined by "/", to arrays
    transformer.safetensors    the same; blocks are stacked over layers
    upscaler.safetensors       only of a system that upscales
    text_encoder/              only with Flan-T5: config.json, weights.safetensors, tokenizer.json
    checksums.json             of the weights, see `files/checksums.py`; text_encoder/ has its own

Parts may arrive one by one (`infinity-jax convert`), in any order; parts that do not belong together are refused.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import PyTree

from infinity_jax import scales
from infinity_jax.checkpoints import rotary
from infinity_jax.config import (
    LABEL_CHANNELS,
    WEIGHT_DTYPES,
    SampleConfig,
    TextConfig,
    TokenizerConfig,
    TransformerConfig,
    UpscalerConfig,
)
from infinity_jax.config_files import from_dict
from infinity_jax.errors import UserError
from infinity_jax.files import atomic, checksums, locks, reading
from infinity_jax.files.lazy_tensor import dtype_named
from infinity_jax.files.safetensors_writer import SafetensorsWriter
from infinity_jax.files.tensors import open_tensors
from infinity_jax.runtime import trees
from infinity_jax.text.minilm import MiniLM
from infinity_jax.upscaler.network import problem_with

_SECTIONS = {
    "tokenizer": TokenizerConfig,
    "transformer": TransformerConfig,
    "upscaler": UpscalerConfig,
    "text": TextConfig,
    "sample": SampleConfig,
}
CONFIG, TEXT_ENCODER = "config.json", "text_encoder"
# Parts with weights: both models of a system, and the upscaler that it may have.
SYSTEM = ("tokenizer", "transformer")
WEIGHTS = {part: f"{part}.safetensors" for part in (*SYSTEM, "upscaler")}


DAMAGED = "copy, export or convert the checkpoint again"


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Makes a folder to share and keeps other processes from writing into it: they wait.

    Raises:
      UserError: it is a training's workdir, which config.json would hide from then on.
    """
    if (folder / "checkpoints").is_dir():
        raise UserError(
            f"{folder} is a training's workdir and would be read as an exported folder from then on; "
            "give another folder"
        )
    with locks.alone(folder / ".lock", f"writes {folder}"):
        atomic.clean(folder)
        yield


def read_config(folder: Path) -> dict[str, Any]:
    """Reads config.json. Raises UserError if it is no checkpoint's."""
    values = reading.read_object(folder / CONFIG, "export or convert the checkpoint again")
    if not values.keys() & {*WEIGHTS, "text"}:
        raise UserError(
            f"{folder / CONFIG} has none of the sections {', '.join(WEIGHTS)}, text; "
            "it is not a checkpoint of this project"
        )
    try:
        _check_sections(values)
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from error
    return values


def _check_sections(values: Mapping[str, Any]) -> None:
    """Raises UserError for a wrong key or value: here, not once gigabytes of weights have been read."""
    for name, cls in _SECTIONS.items():
        if name in values:
            from_dict(cls, values[name], name)
    for name, kind in {"scales": str, "source": str, "origin": dict}.items():
        if not isinstance(values.get(name, kind()), kind):
            raise UserError(
                f"{name} is {values[name]!r}; it must be {'a section' if kind is dict else 'text'}"
            )
    rotary.order_of(values)
    if "scales" in values:
        scales.make_schedule(values["scales"])


def write_config(folder: Path, values: Mapping[str, Any]) -> None:
    """Writes config.json, whole or not at all."""
    atomic.write_json(folder / CONFIG, values)


def add_part(
    folder: Path,
    part: str,
    sections: Mapping[str, Any],
    origin: Mapping[str, Any],
    write: Callable[[Path], Any],
) -> None:
    """Adds a tokenizer, a transformer or an upscaler to a folder that may hold the others already.

    Args:
      folder: within `changing`.
      part: "tokenizer", "transformer" or "upscaler".
      sections: goes into config.json, `part` among them. A transformer's replace those that are there; of a
        tokenizer's only its own does, and the others fill in what is not there yet.
      origin: where the weights come from, for the record.
      write: writes the weights to the path that it is given.
    Raises:
      UserError: the part does not fit what the folder holds; nothing was written.
    """
    old = read_config(folder) if (folder / CONFIG).is_file() else {}
    if part == "tokenizer":
        new = {**sections, **old, part: sections[part]}
        if sections[part].get("side"):  # a ViT's, whose scales are of that side
            new["scales"] = sections["scales"]
    elif part == "upscaler":
        new = {**old, **sections}
    else:
        new = {**old, **sections, **rotary.MARK}
        if "source" not in sections:
            new.pop("source", None)  # the data of the transformer that was here before
    new["origin"] = old.get("origin", {}) | {part: dict(origin)}
    check_fit(folder, new)
    folder.mkdir(parents=True, exist_ok=True)
    with checksums.replacing(folder, WEIGHTS[part]):
        replace(folder / WEIGHTS[part], write)
    write_config(folder, new)


def set_text_encoder(folder: Path, text: Mapping[str, Any]) -> None:
    """Notes in config.json how captions are read: {"encoder", "max_length"}; its files lie in text_encoder/ already."""
    old = read_config(folder) if (folder / CONFIG).is_file() else {}
    write_config(folder, old | {"text": dict(text)})


def check_fit(folder: Path, values: Mapping[str, Any], text_channels: int | None = None) -> None:
    """Raises UserError, by name, where tokenizer, transformer and text encoder of a config.json do not belong together.

    Args:
      text_channels: of a text encoder that is about to be added; None reads those of the folder's text_encoder/.
    """
    tokenizer, transformer = values.get("tokenizer"), values.get("transformer")
    if tokenizer is not None and "upscaler" in values:
        _check_upscaler(folder, values)
    if transformer is None:
        return
    model = from_dict(TransformerConfig, transformer, "transformer")
    if tokenizer is not None:
        bits = from_dict(TokenizerConfig, tokenizer, "tokenizer")
        if bits.transformer_bits != model.bits:
            raise UserError(
                f"{folder}: the tokenizer gives {bits.transformer_bits} bits a token ({bits.bits} x patchify "
                f"{bits.patchify} squared), the transformer has {model.bits}; "
                f"take the tokenizer that this transformer was trained with (d={model.bits})"
            )
        codes = f"tokens of {bits.quantizer!r} with {bits.codes} codes"
        if bits.codes != model.codes:
            raise UserError(
                f"{folder}: the tokenizer gives {codes}, the transformer predicts {model.codes or 'bits'}; take the "
                "tokenizer that this transformer was trained with"
            )
    text = values.get("text", {})
    if text_channels is None:
        text_channels = _text_channels(folder, text.get("encoder"))
    if text.get("max_length", 0) > model.text_length:
        raise UserError(
            f"{folder}: captions of {text['max_length']} tokens, but the transformer's text_length is "
            f"{model.text_length}; set text.max_length to at most that"
        )
    if text_channels is not None and text_channels != model.text_channels:
        raise UserError(
            f"{folder}: the text encoder has {text_channels} channels, the transformer reads {model.text_channels}; "
            "take the text encoder that this transformer was trained with (2048 channels: Flan-T5-XL)"
        )


def _check_upscaler(folder: Path, values: Mapping[str, Any]) -> None:
    upscaler = from_dict(UpscalerConfig, values["upscaler"], "upscaler")
    tokenizer = from_dict(TokenizerConfig, values["tokenizer"], "tokenizer")
    head = values.get("transformer", {}).get("head", "bits")
    if problem := problem_with(upscaler, tokenizer, head, scales.make_schedule(values["scales"])):
        raise UserError(f"{folder}: {problem}; take the upscaler of this system")


def _text_channels(folder: Path, encoder: str | None) -> int | None:
    """Reads the channels of a checkpoint's text encoder; None where its files are not there (yet)."""
    if encoder == "minilm":
        return MiniLM.width
    if encoder == "labels":
        return LABEL_CHANNELS
    path = folder / TEXT_ENCODER / CONFIG
    if encoder != "t5" or not path.is_file():
        return None
    remedy = "convert the text encoder again"
    channels = reading.read_object(path, remedy).get("d_model")
    if not isinstance(channels, int):
        raise UserError(f"{path} is damaged, its d_model is {channels!r}; {remedy}")
    return channels


def check_dtype(dtype: str) -> None:
    """Raises UserError unless weights can be stored as `dtype`."""
    if dtype not in WEIGHT_DTYPES:
        raise UserError(f"unknown dtype of weights {dtype!r}; use one of {', '.join(WEIGHT_DTYPES)}")


def on_default_device(name: str, array: np.ndarray) -> jax.Array:
    """Puts an array as float32 on jax's default device."""
    # By NumPy: nothing is compiled for each of the shapes.
    return jnp.asarray(array.astype(np.float32, copy=False))


def read_arrays(
    path: Path,
    place: Callable[[str, np.ndarray], Any] = on_default_device,
    check: Callable[[Mapping[str, tuple[int, ...]]], None] = lambda shapes: None,
) -> PyTree:
    """Reads parameters, nested dicts, of a .safetensors file; UserError if it is missing or damaged.

    One after the other: in the host's memory there is never more than one as it is stored.

    Args:
      place: (name, array as it is stored) -> what is kept of it; the default is float32 on jax's default device.
      check: told the shapes by name before anything is read.
    """
    try:
        with checksums.beside(lambda: checksums.check(path.parent, [path.name], DAMAGED)):
            tensors = open_tensors(path, "")
            check({name: tensor.shape for name, tensor in tensors.items()})
            arrays = {name: place(name, tensor.read()) for name, tensor in tensors.items()}
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error}; {DAMAGED}") from error
    return unflatten_dict(arrays, sep="/")


def write_arrays(path: Path, params: PyTree, dtype: str) -> None:
    """Writes parameters in `dtype`: "float32", "bfloat16" or "float16"."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {trees.parameter_name(key): leaf for key, leaf in leaves}
    shapes = {name: (dtype_named(dtype), tuple(named[name].shape)) for name in sorted(named)}

    def write(temporary: Path) -> None:
        with SafetensorsWriter(temporary, shapes) as writer:
            for name, (stored, _) in shapes.items():
                writer.write(name, np.asarray(jnp.asarray(named[name]).astype(stored)))

    replace(path, write)


def replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` write a file, whole or not at all; what a killed process left of it is removed first."""
    atomic.remove_unfinished([path])  # weights are large
    with atomic.writing(path) as temporary:
        write(temporary)
