"""Parameters with logical axis names, and the small layers that the transformer is made of.

Logical axis names, for sharding rules:

| name         | what                                              |
|--------------|---------------------------------------------------|
| layers       | depth of the stacked blocks                       |
| embed        | width C of the residual stream                    |
| embed_out    | width C that comes out of a square map            |
| heads        | attention heads                                   |
| head_size    | channels of one head                              |
| merged_heads | heads x head_size, as the output map reads them   |
| mlp          | hidden channels of the feed-forward layer         |
| text         | channels of the text encoder                      |
| text_rows    | rows of the tables of the empty caption and labels |
| scales       | rows of the embedding of scales or of positions   |
| bits         | bits that come in, or logits that go out          |
| indices      | logits of all 2^bits indices                      |
| adaln        | the 6 (block) or 2 (head) modulations             |
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import PyTree

from infinity_jax.config import TransformerConfig
from infinity_jax.transformer.kernels.matmul import matmul
from infinity_jax.transformer.kernels.storage import from_storage

NORM_EPS = 1e-6
LINEAR = "linear map"  # the name by which a remat policy knows its result
ADALN_INIT, GAMMA_INIT = 1e-3, 5e-6


def weight_init(config: TransformerConfig, factor: float = 1.0) -> Callable:
    """Makes a normal of deviation `factor` * sqrt(1 / C / 3): fresh weights and embeddings.

    The release truncates it at -2 and 2, far outside: not at twice the deviation (docs/recipe.md).
    """
    return nn.initializers.normal(factor * math.sqrt(1 / config.width / 3))


def output_init(config: TransformerConfig) -> Callable:
    """Makes the initialiser of projections that add to the residual stream: smaller in deeper models."""
    return weight_init(config, 1 / math.sqrt(2 * config.layers))


def adaln_table_init(config: TransformerConfig) -> Callable:
    """Makes the initialiser of a block's table [6, C]: small rows gamma1, gamma2, then scale1, scale2, shift1, shift2.

    The map that all blocks share is not small at first (docs/recipe.md).
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        factors = jnp.array([GAMMA_INIT] * 2 + [ADALN_INIT] * 4, dtype)[:, None]
        return nn.initializers.normal(config.width**-0.5)(key, shape, dtype) * factors

    return init


def adaln_map_init(config: TransformerConfig) -> Callable:
    """Makes the initialiser of a block's own map [C, 6, C] with rows as in `adaln_table_init` (docs/spec_var.md 3)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        factors = jnp.array([ADALN_INIT] * 2 + [0.5] * 4, dtype)[:, None]
        return weight_init(config)(key, shape, dtype) * factors

    return init


class Operand(nn.LogicallyPartitioned):
    """Boxes a parameter that its module reads only as an operand of products, rounded to `operand_dtype`."""

    operand_dtype: str = flax.struct.field(default="float32", pytree_node=False)


def caption_init(channels: int) -> Callable:
    """Makes the initialiser of the empty caption [rows, channels]: a normal of 1.2, cut at 2, over sqrt(channels)."""
    deviation = 1.2
    return nn.initializers.truncated_normal(
        deviation * channels**-0.5, lower=-2 / deviation, upper=2 / deviation
    )


def parameter(
    module: nn.Module,
    name: str,
    init: Callable,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    operand_dtype: str = "float32",
) -> jax.Array:
    """Declares a float32 parameter of `module` with one logical axis name per dimension.

    Args:
      operand_dtype: what it may be rounded to beforehand (`stored_dtypes`), since the module rounds it so wherever it
        reads it.
    """

    def boxed(*args):
        return Operand(init(*args), axes, operand_dtype=operand_dtype)

    return module.param(name, boxed, shape, jnp.float32)  # pyright: ignore[reportReturnType]


def stored_dtypes(variables: PyTree) -> PyTree:
    """Tells the dtype in which each parameter can be kept for inference without a change of any number.

    Args:
      variables: parameters or their shapes, boxed as `parameter` boxes them.
    Returns:
      the tree with the name of a dtype for each array: what the modules that read it say, or "float32".
    """
    return jax.tree.map(
        lambda leaf: leaf.operand_dtype if isinstance(leaf, Operand) else "float32",
        variables,
        is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned),
    )


class Dense(nn.Module):
    """Linear map of the last axis.

    Attributes:
      axes: logical names, the input's first; None is of no name.
      shape: sizes; the first is the input's, the rest are the output's.
      kernel_init: initialiser of the kernel.
      dtype: of the product's operands.
      bias: whether a bias is added.
      result: type of what comes out, "float32" or `between_products(dtype)`; the bias is added in float32.
      whole: whether others read the kernel too, in float32, so that it must be kept so.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    kernel_init: Callable
    dtype: str
    bias: bool = True
    result: str = "float32"
    whole: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in], float32 or of the type `dtype`, -> [..., *out] of the type `result`."""
        kept = "float32" if self.whole else self.dtype
        kernel = parameter(self, "kernel", self.kernel_init, self.shape, self.axes, kept)
        y = checkpoint_name(matmul(x, from_storage(kernel), self.dtype, self.result), LINEAR)
        if self.bias:
            bias = parameter(self, "bias", nn.initializers.zeros, self.shape[1:], self.axes[1:])
            y = (y + bias).astype(self.result)
        return y


def recomputed(function: Callable) -> Callable:
    """Makes the backward pass of `function` keep the arguments alone and compute the rest again.

    For element-wise work: several arrays of it would be kept otherwise, and writing and reading them takes longer than
    the work.
    """
    # Where both passes are in one loop's body the compiler may share what it likes.
    return functools.wraps(function)(jax.checkpoint(function, prevent_cse=False))


def layer_norm(x: jax.Array) -> jax.Array:
    """Normalises the last axis to zero mean and unit variance, without learned scale, eps 1e-6."""
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + NORM_EPS)


@recomputed
def modulate(x_BLC: jax.Array, scale_BC: jax.Array, shift_BC: jax.Array) -> jax.Array:
    """Applies AdaLN: normalises, then scales by 1 + scale and shifts, per picture."""
    return layer_norm(x_BLC) * (1 + scale_BC[:, None]) + shift_BC[:, None]
