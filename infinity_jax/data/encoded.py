"""A captioned data set as the transformer reads it: tokenizer features and text features, encoded once."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Float

from infinity_jax.checkpoints.trained import TrainedTokenizer
from infinity_jax.data import batches, pictures
from infinity_jax.data.records import Source
from infinity_jax.data.scenes.on_device import ScenesOnDevice
from infinity_jax.files import caches, paths
from infinity_jax.files.progress import counted
from infinity_jax.runtime import distributed
from infinity_jax.runtime.compiled_step import BatchShapes, CompiledStep, Compiler
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


class FeaturesOnDevice:
    """Replaces a batch's `image` uint8 [B,H,W,3] by its `features` float32 [B,h,w,d], on the devices of a mesh.

    Each aspect ratio is one program. Scenes are drawn first; features that a batch has already become float32.
    """

    def __init__(self, tokenizer: TrainedTokenizer, layout: Layout, compiler: Compiler | None = None):
        """Takes what encodes, and what compiles the programs; see `CompiledStep`."""
        model, self._layout, self._tokenizer = Tokenizer(tokenizer.config), layout, tokenizer
        self._scenes = ScenesOnDevice(layout, compiler)

        def encode(params, batch, _):
            image_BHW3 = batch["image"].astype(jnp.float32) / 127.5 - 1
            return model.apply({"params": params}, image_BHW3, method="encode")

        def encoder(size: int) -> CompiledStep:
            jitted = jax.jit(layout.traced(encode), out_shardings=layout.batch(size))
            return CompiledStep(jitted, compiler, "the picture encoder")

        self._encoder_of_size = functools.cache(encoder)

    @functools.cached_property
    def _replicated(self) -> Any:
        # Not before they are needed: records may hold features.
        return jax.tree.map(lambda x: put(x, self._layout.replicated), self._tokenizer.params)

    def __call__(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Makes the features of a batch that lies on the devices."""
        batch = self._scenes(batch)
        if "features" in batch:
            return {**batch, "features": batch["features"].astype(jnp.float32)}
        rest = {name: array for name, array in batch.items() if name != "image"}
        image = batch["image"]
        encode = self._encoder_of_size(len(image))
        return {**rest, "features": encode(self._replicated, {"image": image}, None)}

    def prepare(self, batches: Sequence[BatchShapes]) -> list[BatchShapes]:
        """Compiles the programs for batches of these shapes, all of one size; returns the shapes that they become."""
        params = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._layout.replicated),
            self._tokenizer.params,
        )
        batches = self._scenes.prepare(batches)
        images = [{"image": batch["image"]} for batch in batches if "image" in batch]
        if images:
            self._encoder_of_size(images[0]["image"].shape[0]).prepare(params, images, None)
        config = self._tokenizer.config

        def after(batch: BatchShapes) -> BatchShapes:
            given = dict(batch)
            if "image" in given:
                size, height, width, _ = given.pop("image").shape
                shape = (size, height // config.stride, width // config.stride, config.bits)
            else:
                shape = given["features"].shape
                size = shape[0]
            features = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=self._layout.batch(size))
            return {**given, "features": features}

        return [after(batch) for batch in batches]
