"""Trained parts in memory: configs, weights and where they come from."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from infinity_jax import scales
from infinity_jax.checkpoints.origin import data_of
from infinity_jax.config import VIT, TokenizerConfig, TransformerConfig, UpscalerConfig
from infinity_jax.errors import UserError
from infinity_jax.files.lazy_tensor import dtype_named
from infinity_jax.runtime import trees
from infinity_jax.runtime.sharding import Layout, put
from infinity_jax.tokenizer.model import Tokenizer, initial_variables, quantizer_of
from infinity_jax.tokenizer.pyramid import Quantizer
from infinity_jax.transformer import layers
from infinity_jax.transformer.kernels.storage import to_storage
from infinity_jax.transformer.transformer import init_variables
from infinity_jax.upscaler.network import initial_variables as initial_upscaler


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

    def __post_init__(self) -> None:
        """Raises UserError for scales of another size than the one that a ViT knows."""
        if self.config.architecture == VIT and self.side != self.config.side:
            own = self.config.side // self.config.transformer_stride
            raise UserError(
                f"the scales {self.scales!r} are of pictures of {self.side}x{self.side} pixels, and this tokenizer's "
                f"ViT has positions for {self.config.side}x{self.config.side} alone; use {str(own)!r}, or scales that "
                "end with that side"
            )

    @property
    def side(self) -> int:
        """Height and width in pixels of its square pictures."""
        return scales.make_schedule(self.scales).last[0] * self.config.transformer_stride

    def quantizer(self, n_scales: int) -> Quantizer:
        """Makes its quantiser for pictures of K scales."""
        return quantizer_of(self.config, self.params, n_scales)

    @functools.cached_property
    def fingerprint(self) -> str:
        """24 hex digits that name its encoder: equal ones give equal features of equal pictures."""
        return self.encoder_hash().hexdigest()[:24]

    def encoder_hash(self, *more: Any) -> "hashlib._Hash":
        """Starts a sha256 of the config, of `more` that features depend on, and of the encoder's weights."""
        c = self.config
        if c.architecture == VIT:  # what its weights do not tell
            more = (*more, VIT, c.heads, c.laplace)
        digest = hashlib.sha256(" ".join(map(str, (c, *more))).encode())
        parts = ("encoder", "latent_in") if self.config.latent_kernel else ("encoder",)
        for leaf in jax.tree.leaves([self.params[part] for part in parts]):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest


@dataclasses.dataclass(frozen=True)
class TrainedUpscaler:
    """The network that predicts a picture's first scales, with its weights.

    Attributes:
      config: what it is.
      params: float32 parameters, nested dicts.
      origin: commit, command and config of the run that made it, for the record.
    """

    config: UpscalerConfig
    params: PyTree
    origin: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """Everything that turns prompts into pictures.

    Attributes:
      tokenizer: its decoder makes the pictures.
      config: the transformer's.
      params: the transformer's parameters, float32 or what `stored_dtypes` says.
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


@functools.cache
def stored_dtypes(config: TransformerConfig) -> PyTree:
    """Tells the dtype in which each of the transformer's parameters can be kept for drawing, see `layers`."""
    return layers.stored_dtypes(transformer_variables(config))


@dataclasses.dataclass(frozen=True)
class Placing:
    """Where the arrays of a checkpoint go and in which dtype, told one by one as they are read.

    Attributes:
      dtypes: tree with the name of a dtype for each parameter.
      shardings: tree with a NamedSharding for each; None is jax's default device.
    """

    dtypes: PyTree
    shardings: PyTree | None = None

    @classmethod
    def of(cls, variables: PyTree, dtypes: PyTree | None = None, layout: Layout | None = None) -> "Placing":
        """Plans for parameters that are boxed with their logical axis names; without `dtypes` all become float32."""
        if dtypes is None:
            dtypes = jax.tree.map(lambda _: "float32", nn.meta.unbox(variables))
        return cls(dtypes, None if layout is None else layout.of(variables))

    @functools.cached_property
    def _by_name(self) -> dict[str, tuple[str, Any]]:
        dtypes = jax.tree_util.tree_leaves_with_path(self.dtypes)
        where = [None] * len(dtypes) if self.shardings is None else jax.tree.leaves(self.shardings)
        return {
            trees.parameter_name(path): (dtype, sharding)
            for (path, dtype), sharding in zip(dtypes, where, strict=True)
        }

    def __call__(self, name: str, array: Any) -> jax.Array:
        """Rounds an array and lays it out. By NumPy: nothing is compiled for each of the shapes."""
        dtype, sharding = self._by_name[name]
        if not isinstance(array, jax.Array):
            array = np.asarray(array)
        kept = to_storage(array if array.dtype == dtype_named(dtype) else array.astype(dtype_named(dtype)))
        return jnp.asarray(kept) if sharding is None else put(kept, sharding)

    def each(self, params: PyTree) -> PyTree:
        """Places arrays one after the other, and lets go of each as it was."""
        flat = flatten_dict(params, sep="/")
        return unflatten_dict({name: self(name, flat.pop(name)) for name in list(flat)}, sep="/")

    def targets(self, shapes: PyTree) -> PyTree:
        """Tells shape, dtype and sharding of each array, as ShapeDtypeStructs, for those who lay arrays out themselves.

        On a CPU the form in which low precision is stored there is not among them: `__call__` makes it.
        """
        structs = jax.tree.map(lambda x, dtype: jax.ShapeDtypeStruct(x.shape, dtype), shapes, self.dtypes)
        if self.shardings is None:
            return structs
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            structs,
            self.shardings,
        )


def transformer_placing(config: TransformerConfig, layout: Layout | None, rounded: bool) -> Placing:
    """Plans where the transformer's arrays go: rounded to `stored_dtypes`, or float32."""
    return Placing.of(transformer_variables(config), stored_dtypes(config) if rounded else None, layout)


def transformer_variables(config: TransformerConfig) -> PyTree:
    """Builds the transformer's parameters as ShapeDtypeStructs, boxed with their logical axis names."""
    # Parameters do not depend on the schedule; all presets begin so, and the shortest is the cheapest to trace.
    schedule = scales.ScaleSchedule(((1, 1), (2, 2)), (2, 2))
    return jax.eval_shape(lambda: init_variables(config, jax.random.key(0), schedule)["params"])


def tokenizer_variables(config: TokenizerConfig) -> PyTree:
    """Builds the tokenizer's parameters as ShapeDtypeStructs, boxed with their logical axis names."""
    return jax.eval_shape(lambda: initial_variables(Tokenizer(config), config.stride, 0))


def upscaler_variables(config: UpscalerConfig) -> PyTree:
    """Builds the upscaler's parameters as ShapeDtypeStructs, boxed with their logical axis names."""
    return jax.eval_shape(lambda: initial_upscaler(config, 0))


def upscaler_shapes(config: UpscalerConfig) -> PyTree:
    """Builds the upscaler's parameters as ShapeDtypeStructs."""
    return nn.meta.unbox(upscaler_variables(config))


def transformer_shapes(config: TransformerConfig) -> PyTree:
    """Builds the transformer's parameters as ShapeDtypeStructs."""
    return nn.meta.unbox(transformer_variables(config))


def tokenizer_shapes(config: TokenizerConfig) -> PyTree:
    """Builds the tokenizer's parameters as ShapeDtypeStructs."""
    return nn.meta.unbox(tokenizer_variables(config))
