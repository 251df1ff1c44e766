"""A captioned data set as the transformer reads it: tokenizer features and text features, encoded once."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Float

from infinity_jax.checkpoints.trained import TrainedTokenizer
from infinity_jax.data import batches, pictures
from infinity_jax.data.records import Source
from infinity_jax.files import caches, paths
from infinity_jax.files.progress import counted
from infinity_jax.runtime import distributed
from infinity_jax.runtime.compiled_step import CompiledStep
from infinity_jax.runtime.sharding import Layout, put
from infinity_jax.text.cache import cached_features
from infinity_jax.text.encoder import TextEncoder
from infinity_jax.tokenizer.model import Tokenizer

_BATCH = 64


class EncodedSource:
    """Random access to {features float32 [h,w,d], text float16 [T,C], text_mask bool [T]}, memory-mapped."""

    def __init__(self, features_NhwD: np.ndarray, text_NTC: np.ndarray, mask_NT: np.ndarray):
        self._arrays = {"features": features_NhwD, "text": text_NTC, "text_mask": mask_NT}

    def __len__(self) -> int:
        return len(self._arrays["features"])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: array[index] for name, array in self._arrays.items()}


def encode_split(
    source: Source, tokenizer: TrainedTokenizer, text_encoder: TextEncoder, fit: str = "crop"
) -> EncodedSource:
    """Encodes pictures and captions of a split, or reads what the same tokenizer and encoder have made of it before.

    One process after the other; what is made lies in `features` under the data folder. `fit` is that of
    `pictures.decode`.
    """
    return distributed.lead_first(lambda: _encode(source, tokenizer, text_encoder, fit))


def _encode(
    source: Source, tokenizer: TrainedTokenizer, text_encoder: TextEncoder, fit: str
) -> EncodedSource:
    cache_dir = paths.data_dir() / "features"
    records = [source[i] for i in range(len(source))]
    text_NTC, mask_NT = cached_features(text_encoder, [record["caption"] for record in records], cache_dir)
    return EncodedSource(_picture_features(records, tokenizer, cache_dir, fit), text_NTC, mask_NT)


def _picture_features(
    records, tokenizer: TrainedTokenizer, cache_dir: Path, fit: str
) -> Float[np.ndarray, "N h w d"]:
    side, model = tokenizer.side, Tokenizer(tokenizer.config)
    digest = tokenizer.encoder_hash(side, *(() if fit == "crop" else (fit,)))
    for record in records:
        digest.update(hashlib.sha256(record["image"]).digest())
    path = cache_dir / f"pictures-{digest.hexdigest()[:24]}.npy"
    size = side // tokenizer.config.stride
    shape = (len(records), size, size, tokenizer.config.bits)
    if path.exists():
        try:
            cached = caches.load(path)
            if cached.shape == shape:
                return cached
            logging.warning("picture features in %s have shape %s: recomputing them", path, cached.shape)
        except (OSError, ValueError, EOFError) as error:
            logging.warning("picture features in %s cannot be read (%s): recomputing them", path, error)
    encode = jax.jit(lambda params, image: model.apply({"params": params}, image, method="encode"))

    def decode(record):
        return {"image": pictures.decode(record["image"], side, side, fit)}

    with caches.writing(path, 4 * int(np.prod(shape))) as temporary:
        features = caches.reserve(temporary, shape, np.float32)
        done = 0
        all_batches = batches.eval_batches(records, _BATCH, decode)
        for batch in counted(all_batches, "encoding pictures", len(records), "pictures", _valid):
            encoded = np.asarray(encode(tokenizer.params, pictures.to_float(batch["image"])))[batch["valid"]]
            features[done : done + len(encoded)] = encoded
            done += len(encoded)
        features.flush()
    return np.load(path, mmap_mode="r")


def _valid(batch: batches.Batch) -> int:
    return int(batch["valid"].sum())


def features_on_device(
    tokenizer: TrainedTokenizer, layout: Layout
) -> Callable[[dict[str, jax.Array]], dict[str, jax.Array]]:
    """Makes the function that replaces a batch's `image` uint8 [B,H,W,3] by its `features` float32 [B,h,w,d].

    Each aspect ratio is one program. Features that a batch has already become float32.
    """
    model = Tokenizer(tokenizer.config)
    # Not before they are needed: records may hold features.
    replicated = functools.cache(lambda: jax.tree.map(lambda x: put(x, layout.replicated), tokenizer.params))

    def encode(params, batch, _):
        image_BHW3 = batch["image"].astype(jnp.float32) / 127.5 - 1
        return model.apply({"params": params}, image_BHW3, method="encode")

    encoders = functools.cache(
        lambda size: CompiledStep(jax.jit(layout.traced(encode), out_shardings=layout.batch(size)))
    )

    def features(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        if "features" in batch:
            return {**batch, "features": batch["features"].astype(jnp.float32)}
        rest = {name: array for name, array in batch.items() if name != "image"}
        image = batch["image"]
        return {**rest, "features": encoders(len(image))(replicated(), {"image": image}, None)}

    return features
