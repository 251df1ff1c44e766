"""Flan-T5 as a text encoder: read from a folder that `infinity-jax convert --kind t5` made."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float, Int, PyTree
from tokenizers import Tokenizer

from infinity_jax.errors import UserError, shortened
from infinity_jax.files import checksums, reading
from infinity_jax.files.lazy_tensor import dtype_named
from infinity_jax.files.tensors import open_tensors
from infinity_jax.runtime.sharding import Layout, put
from infinity_jax.text.batching import BatchedEncoder
from infinity_jax.text.t5 import T5, T5Config, param_variables
from infinity_jax.transformer.kernels.storage import to_storage
from infinity_jax.transformer.layers import stored_dtypes

CONFIG, WEIGHTS, TOKENIZER, WEIGHTS_HASH = "config.json", "weights.safetensors", "tokenizer.json", "sha256"
FILES = (CONFIG, WEIGHTS, TOKENIZER, WEIGHTS_HASH)
HOW_TO_MAKE = "make it with: infinity-jax convert --from FLAN_T5_FOLDER --kind t5 --config xl --out DIR"
LONGEST = 512
# What is wrong with a vocabulary may show with a word, a letter or a sign that it does not have.
_PROBE = "a red heart, \u00e9 \u6f22 \U0001f9ff"
_END, _END_ID = "</s>", 1


class T5Encoder(BatchedEncoder):
    """`T5` of size `config` with weights and tokenizer: a `TextEncoder`."""

    name = "t5"

    def __init__(self, max_length: int, model: T5, params: PyTree, tokenizer: Tokenizer, fingerprint: str):
        self._model, self.config = model, model.config
        config = model.config
        super().__init__(range(2, LONGEST + 1), max_length, config.width, params, tokenizer, fingerprint)
        check_tokenizer(tokenizer, config)

    def place(self, layout: Layout) -> None:
        """See `TextEncoder.place`."""
        shardings = layout.of(param_variables(self.config))
        self.params = jax.tree.map(put, self.params, shardings)
        self._apply = jax.jit(layout.traced(self.apply), out_shardings=layout.replicated)

    def flops(self, tokens: int) -> int:
        """See `TextEncoder.flops`."""
        return self._model.flops(tokens)

    def apply(
        self, params: PyTree, ids_BT: Int[Array, "B T"], mask_BT: Bool[Array, "B T"]
    ) -> Float[Array, "B T C"]:
        """See `BatchedEncoder.apply`."""
        return jnp.asarray(self._model.apply({"params": params}, ids_BT, mask_BT))

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [_ended(ids) for ids in super()._tokenize(texts)]

    def _is_unknown(self, ids: list[int]) -> bool:
        return set(ids[:-1]) <= {self._tokenizer.token_to_id(token) for token in ("<unk>", "▁")}


def _ended(ids: list[int]) -> list[int]:
    """Ends the ids with one end token, whether the tokenizer's file adds one, the text ends in "</s>", or neither."""
    last = len(ids)
    while last and ids[last - 1] == _END_ID:
        last -= 1
    return [*ids[:last], _END_ID]


def check_tokenizer(tokenizer: Tokenizer, config: T5Config) -> None:
    """Raises UserError unless it has T5's end token and no more tokens than the model."""
    if tokenizer.token_to_id(_END) != _END_ID:
        raise UserError(
            f"{TOKENIZER} gives {_END!r} the id {tokenizer.token_to_id(_END)}, T5 has {_END_ID}; "
            "take the tokenizer.json of the T5 model"
        )
    if tokenizer.get_vocab_size() > config.vocabulary:
        raise UserError(
            f"{TOKENIZER} has {tokenizer.get_vocab_size()} tokens but the model only {config.vocabulary}; "
            "take the tokenizer.json of the same model"
        )


def load_t5(max_length: int, folder: Path, dtype: str = "bfloat16") -> T5Encoder:
    """Loads the encoder that `infinity-jax convert --kind t5` wrote as text_encoder/, for `max_length` of 2 to 512.

    Its linear maps are kept in `dtype`, to which they are rounded one by one as they are read, in the host's memory.

    Raises UserError if a file is missing, unreadable or does not fit the others, or `max_length` is out of range.
    """
    missing = [name for name in (CONFIG, WEIGHTS, TOKENIZER) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"the text encoder's folder {folder} lacks {', '.join(missing)}; {HOW_TO_MAKE} "
            "and take its folder DIR/text_encoder"
        )
    there = [name for name in FILES if (folder / name).is_file()]
    with checksums.beside(lambda: checksums.check(folder, there, f"copy the folder again, or {HOW_TO_MAKE}")):
        config = read_config(folder / CONFIG)
        tokenizer = read_tokenizer(folder / TOKENIZER)
        model = T5(config, dtype)
        params = _read_params(folder / WEIGHTS, model)
        return T5Encoder(max_length, model, params, tokenizer, _fingerprint(folder, config, dtype))


def read_config(path: Path) -> T5Config:
    """Reads the config in a Hugging Face config.json; UserError if it is no JSON object or not of a T5 v1.1."""
    return T5Config.from_hf(reading.read_object(path, "copy it again"))


def read_tokenizer(path: Path) -> Tokenizer:
    """Reads the tokenizer in a tokenizer.json; UserError if it cannot be read."""
    try:
        tokenizer = Tokenizer.from_buffer(reading.read_bytes(path, reading.MOST_JSON))
        tokenizer.encode(_PROBE)
        return tokenizer
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises nothing more special, and its panics are no Exception
        said = shortened(str(error), 200, quoted=False)
        raise UserError(f"cannot read the tokenizer {path}: {said}; copy it again") from error


def _read_params(path: Path, model: T5) -> PyTree:
    variables = param_variables(model.config, model.compute_dtype)
    shapes: dict[str, Any] = flatten_dict(nn.meta.unbox(variables), sep="/")
    dtypes: dict[str, Any] = flatten_dict(stored_dtypes(variables), sep="/")
    try:
        tensors = open_tensors(path, "t5")
        for name in sorted(tensors.keys() | shapes.keys()):
            have = tensors[name].shape if name in tensors else "missing"
            want = shapes[name].shape if name in shapes else "missing"
            if have != want:
                raise UserError(
                    f"{path} is of another model: {name} is {have} there and {want} by config.json; convert it again"
                )
        flat = {name: _kept(tensor.read(), dtypes[name]) for name, tensor in tensors.items()}
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error}; copy or convert them again") from error
    return unflatten_dict(flat, sep="/")


def _kept(array: np.ndarray, dtype: str) -> np.ndarray:
    """Rounds to `dtype` what is stored in a wider one."""
    rounded = dtype != "float32" and array.dtype != dtype_named(dtype)
    return to_storage(array.astype(dtype_named(dtype)) if rounded else array)


def _fingerprint(folder: Path, config: T5Config, dtype: str) -> str:
    # The names of caches hold what is computed in, so that features of two dtypes are never mixed.
    parts = "t5", json.dumps(dataclasses.asdict(config)), dtype, _weights_hash(folder)
    return hashlib.sha256(" ".join([*parts, hash_of_file(folder / TOKENIZER)]).encode()).hexdigest()


def _weights_hash(folder: Path) -> str:
    """Computes the sha256 of the weights, or takes it from the converter's file where checksums bind that to them."""
    written, noted = folder / WEIGHTS_HASH, ""
    if written.is_file():
        noted = written.read_text(errors="replace").split(" ")[0].strip()
        if len(noted) != 64 or not set(noted) <= set("0123456789abcdef"):
            raise UserError(f"{written} does not hold a sha256; delete it, or convert the text encoder again")
    # `load_t5` compares these checksums, about ten times as fast as a sha256.
    if noted and {WEIGHTS, WEIGHTS_HASH} <= checksums.read(folder).keys():
        return noted
    computed = hash_of_file(folder / WEIGHTS)
    if noted not in ("", computed):
        raise UserError(
            f"{folder / WEIGHTS} is not what {written} was written for, its sha256 is {computed}; copy the folder "
            "again, or delete that file if the weights are meant to be others"
        )
    return computed


def hash_of_file(path: Path) -> str:
    """Computes the sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
