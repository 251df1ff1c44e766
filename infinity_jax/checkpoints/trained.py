"""Trained parts in memory: configs, weights and where they come from."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import PyTree

from infinity_jax import scales
from infinity_jax.checkpoints.origin import data_of
from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.runtime.sharding import Layout, put
from infinity_jax.tokenizer.model import Tokenizer, initial_variables
from infinity_jax.transformer.transformer import init_variables


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

    @functools.cached_property
    def fingerprint(self) -> str:
        """24 hex digits that name its encoder: equal ones give equal features of equal pictures."""
        return self.encoder_hash().hexdigest()[:24]

    def encoder_hash(self, *more: Any) -> "hashlib._Hash":
        """Starts a sha256 of the config, of `more` that features depend on, and of the encoder's weights."""
        digest = hashlib.sha256(" ".join(map(str, (self.config, *more))).encode())
        for leaf in jax.tree.leaves(self.params["encoder"]):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """Everything that turns prompts into pictures.

    Attributes:
      tokenizer: its decoder makes the pictures.
      config: the transformer's.
      params: the transformer's float32 parameters.
      text: how captions are read: {"encoder": name, "max_length": tokens}, and what else `TextConfig` has.
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

    @property
    def trained_on(self) -> list[str]:
        """Names all data behind the pictures: of both parts' runs, and of those that they began with."""
        own = [self.source] if self.source else []
        behind = [*data_of(self.origin), *own, *data_of(self.tokenizer.origin)]
        return list(dict.fromkeys(behind))


def placed(model: TrainedModel, layout: Layout) -> TrainedModel:
    """Lays a system's weights out over a mesh; what lies so already is not moved."""
    params, tokenizer_params = (
        jax.tree.map(put, tree, layout.of(variables))
        for tree, variables in (
            (model.params, transformer_variables(model.config)),
            (model.tokenizer.params, tokenizer_variables(model.tokenizer.config)),
        )
    )
    tokenizer = dataclasses.replace(model.tokenizer, params=tokenizer_params)
    return dataclasses.replace(model, params=params, tokenizer=tokenizer)


def transformer_variables(config: TransformerConfig) -> PyTree:
    """Builds the transformer's parameters as ShapeDtypeStructs, boxed with their logical axis names."""
    # Parameters do not depend on the schedule; all presets begin so, and the shortest is the cheapest to trace.
    schedule = scales.ScaleSchedule(((1, 1), (2, 2)), (2, 2))
    return jax.eval_shape(lambda: init_variables(config, jax.random.key(0), schedule)["params"])


def tokenizer_variables(config: TokenizerConfig) -> PyTree:
    """Builds the tokenizer's parameters as ShapeDtypeStructs, boxed with their logical axis names."""
    return jax.eval_shape(lambda: initial_variables(Tokenizer(config), config.stride, 0))


def transformer_shapes(config: TransformerConfig) -> PyTree:
    """Builds the transformer's parameters as ShapeDtypeStructs."""
    return nn.meta.unbox(transformer_variables(config))


def tokenizer_shapes(config: TokenizerConfig) -> PyTree:
    """Builds the tokenizer's parameters as ShapeDtypeStructs."""
    return nn.meta.unbox(tokenizer_variables(config))
