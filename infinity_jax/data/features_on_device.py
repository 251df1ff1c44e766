"""Tokenizer features of a batch's pictures, made on the mesh that trains."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from infinity_jax.config import TokenizerConfig
from infinity_jax.runtime.compiled_step import CompiledStep
from infinity_jax.runtime.sharding import Layout, place
from infinity_jax.tokenizer.model import Tokenizer


def features_on_device(
    tokenizer: TokenizerConfig, params: PyTree, layout: Layout
) -> Callable[[dict[str, jax.Array]], dict[str, jax.Array]]:
    """What makes `features` float32 [B,h,w,d] of a batch's `image` uint8 [B,H,W,3], one program for each ratio.

    Features that a batch has already, bfloat16, become float32.
    """
    model = Tokenizer(tokenizer)
    # Not before they are needed: records may hold features.
    placed = functools.cache(lambda: jax.tree.map(lambda x: place(x, layout.whole), params))

    def encode(params, batch, _):
        image_BHW3 = batch["image"].astype(jnp.float32) / 127.5 - 1
        return model.apply({"params": params}, image_BHW3, method="encode")

    encoders = functools.cache(
        lambda size: CompiledStep(jax.jit(layout.traced(encode), out_shardings=layout.batch(size)))
    )

    def features(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        if "features" in batch:
            return {**batch, "features": batch["features"].astype(jnp.float32)}
        others = {name: array for name, array in batch.items() if name != "image"}
        image = batch["image"]
        return {**others, "features": encoders(len(image))(placed(), {"image": image}, None)}

    return features
