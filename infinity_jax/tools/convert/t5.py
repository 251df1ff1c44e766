"""`infinity-jax convert --kind t5`: a Flan-T5 as Hugging Face has it -> the text_encoder/ of a checkpoint."""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import logging

from infinity_jax.checkpoints import folder as checkpoint_folder
from infinity_jax.errors import UserError
from infinity_jax.files import atomic, checksums, paths
from infinity_jax.files.lazy_tensor import LazyTensor
from infinity_jax.files.tensors import open_tensors
from infinity_jax.text import t5_encoder
from infinity_jax.text.t5 import NAMES, T5Config
from infinity_jax.tools.convert.links import Link, differences, linear, same, size_of, write_ours


def convert_t5(source: str, config: str, out: str) -> None:
    """Writes out/text_encoder/ (config, weights of the encoder in their dtype, tokenizer) and notes it in config.json.

    One tensor is in memory at a time.

    Args:
      source: a Hugging Face folder with tokenizer.json, and model.safetensors or pytorch_model.bin or shards of
        them with their index; or such a file or index, with tokenizer.json beside it.
      config: "small", "base", "large", "xl" or "xxl" ("flan-t5-xl" is fine too), or the path of a config.json.
      out: a folder that may hold a transformer and a tokenizer already.
    Raises:
      UserError: a file is missing, weights, tokenizer and config do not fit one another, or the transformer in
        `out` reads features of another width; nothing was changed then.
    """
    started, folder = time.monotonic(), Path(out)
    if not Path(source).exists():
        raise UserError(f"no file or folder {source}; give the folder of a Flan-T5 model of Hugging Face")
    model = _config(config)
    tokenizer = _source_file(source, t5_encoder.TOKENIZER)
    if not tokenizer.is_file():
        raise UserError(
            f"{tokenizer} is missing; take it from the same T5 model, for example google/flan-t5-xl"
        )
    _check_source_config(_source_file(source, t5_encoder.CONFIG), config, model)
    t5_encoder.check_tokenizer(t5_encoder.read_tokenizer(tokenizer), model)
    tensors = _encoder_tensors(open_tensors(Path(source), "t5"))
    links = t5_links(model)
    _check_fit(tensors, links, config)
    paths.check_not_read(
        folder / checkpoint_folder.TEXT_ENCODER, "the folder text_encoder in --out", tokenizer.parent
    )
    with checkpoint_folder.changing(folder):
        has_config = (folder / checkpoint_folder.CONFIG).is_file()
        old = checkpoint_folder.read_config(folder) if has_config else {}
        checkpoint_folder.check_fit(folder, old, text_channels=model.width)
        _write(folder / checkpoint_folder.TEXT_ENCODER, model, tokenizer, tensors, links)
        text = old.get("text", {})
        # A transformer that is there already knows how long its captions may be.
        longest = text["max_length"] if text.get("encoder") == "t5" else t5_encoder.LONGEST
        checkpoint_folder.set_text_encoder(folder, {"encoder": "t5", "max_length": longest})
    logging.info(
        "converted %d tensors, %.2f GB, into %s in %.0f s",
        *(len(tensors), size_of(tensors) / 1e9, folder, time.monotonic() - started),
    )


def _config(name_or_file: str) -> T5Config:
    file = Path(name_or_file)
    if file.suffix == ".json":
        if not file.is_file():
            raise UserError(f"no config file {name_or_file}")
        return t5_encoder.read_config(file)
    name = name_or_file.removeprefix("flan-t5-")
    if name not in NAMES:
        raise UserError(
            f"unknown T5 config {name_or_file!r}; known: {', '.join(NAMES)}, or the path of a config.json"
        )
    return NAMES[name]


def _source_file(source: str, name: str) -> Path:
    path = Path(source)
    return (path if path.is_dir() else path.parent) / name


def _check_source_config(path: Path, name: str, model: T5Config) -> None:
    """Checks that the source's own config, if it has one, is equal: shapes do not tell everything, like heads."""
    if not path.is_file():
        return
    theirs, ours = t5_encoder.read_config(path).to_hf(), model.to_hf()
    different = [
        f"{key} is {theirs[key]} there and {ours[key]} here" for key in ours if theirs[key] != ours[key]
    ]
    if different:
        raise UserError(
            f"{path} is of another model than the config {name!r}: {'; '.join(different)}; use --config {path}"
        )


def _encoder_tensors(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Keeps those of the encoder alone, the embedding under one name."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(LEFT_OUT)}
    alias = kept.pop(EMBEDDING_ALIAS, None)
    if alias is None:
        return kept
    table = kept.get(EMBEDDING, alias)
    if table != alias and (table.shape != alias.shape or table.read().tobytes() != alias.read().tobytes()):
        raise UserError(
            f"{EMBEDDING} and {EMBEDDING_ALIAS} differ; in T5 they are one table, so the file is damaged"
        )
    return {EMBEDDING: alias} | kept


def _check_fit(tensors: Mapping[str, LazyTensor], links: Sequence[Link], config_name: str) -> None:
    if not (found := differences(tensors, links)):
        return
    similar = [name for name, config in NAMES.items() if not differences(tensors, t5_links(config))]
    words = [f"these look like the weights of {similar[0]!r}"] if similar else []
    raise UserError(f"the weights do not fit the T5 config {config_name!r}: {'. '.join([*words, *found])}")


def _write(
    folder: Path, model: T5Config, tokenizer: Path, tensors: Mapping[str, LazyTensor], links: Sequence[Link]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    atomic.clean(folder)
    weights = folder / t5_encoder.WEIGHTS
    with checksums.replacing(folder, *t5_encoder.FILES):
        (folder / t5_encoder.WEIGHTS_HASH).unlink(
            missing_ok=True
        )  # so that it can never be that of other weights
        checkpoint_folder.replace(weights, lambda path: write_ours(path, tensors, links))
        checkpoint_folder.replace(
            folder / t5_encoder.TOKENIZER, lambda path: shutil.copyfile(tokenizer, path)
        )
        atomic.write_json(folder / t5_encoder.CONFIG, model.to_hf())
        # In the form of the program sha256sum, which can check it.
        line = f"{t5_encoder.hash_of_file(weights)}  {weights.name}\n"
        atomic.write_text(folder / t5_encoder.WEIGHTS_HASH, line)


EMBEDDING = "shared.weight"
# Encoders saved by themselves have the embedding under this name, whole models may have both.
EMBEDDING_ALIAS = "encoder.embed_tokens.weight"
# Of a whole model, what the encoder does not need.
LEFT_OUT = ("decoder.", "lm_head.")


def t5_links(c: T5Config) -> list[Link]:
    """Makes one link for each tensor of the encoder; paths of ours are those of `text.t5.T5`."""
    first = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    embedding, positions = (c.vocabulary, c.width), (c.position_buckets, c.heads)
    return [
        same(EMBEDDING, "embedding", embedding, embedding),
        same(first, "position_bias", positions, positions),
        same("encoder.final_layer_norm.weight", "final_norm_scale", (c.width,)),
        *(link for layer in range(c.layers) for link in _block_links(c, layer)),
    ]


def _block_links(c: T5Config, layer: int) -> list[Link]:
    inputs, outputs = (c.width, c.heads, c.head_size), (c.heads * c.head_size, c.width)
    wide, narrow = (c.width, c.ffn_width), (c.ffn_width, c.width)
    maps = {
        "0.SelfAttention.q": ("attention/query", inputs),
        "0.SelfAttention.k": ("attention/key", inputs),
        "0.SelfAttention.v": ("attention/value", inputs),
        "0.SelfAttention.o": ("attention/out", outputs),
        "1.DenseReluDense.wi_0": ("ffn/gate", wide),
        "1.DenseReluDense.wi_1": ("ffn/up", wide),
        "1.DenseReluDense.wo": ("ffn/down", narrow),
    }
    norms = {"0.layer_norm": "attention_norm_scale", "1.layer_norm": "ffn_norm_scale"}
    prefix = f"encoder.block.{layer}.layer"
    return [
        linear(f"{prefix}.{theirs}.weight", (f"blocks/{ours}/kernel",), shape, layer=layer)
        for theirs, (ours, shape) in maps.items()
    ] + [
        same(f"{prefix}.{theirs}.weight", f"blocks/{ours}", (c.width,), layer=layer)
        for theirs, ours in norms.items()
    ]
