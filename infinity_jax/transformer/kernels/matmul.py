"""The dense products of the transformer: low-precision operands, float32 sums.

The residual stream, norms, softmax and logits are float32 everywhere, and values are cast where they enter a product.
What stands between two products of a block is in `between_products`.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from infinity_jax.runtime.devices import platform
from infinity_jax.runtime.sharding import on_mesh
from infinity_jax.transformer.kernels.storage import from_storage, to_storage


def precision(dtype: str) -> lax.Precision:
    """Chooses the precision of a product of operands in `dtype`: exact for float32, which a TPU would round."""
    return lax.Precision.HIGHEST if dtype == "float32" else lax.Precision.DEFAULT


def between_products(dtype: str) -> str:
    """Chooses the type of arrays that lie between two products of a block: that of their operands, `dtype`.

    They are queries, keys, values, the output of attention and the feed-forward layer's hidden channels, with their
    gradients. TPUs and GPUs sum in float32 whatever the result is, and half the bytes leave and enter their memory. A
    CPU's products with a bfloat16 result are slower than those with float32, so there it is "float32".
    """
    return "float32" if platform() == "cpu" else dtype


def _as_new_array(x: jax.Array) -> jax.Array:
    shape = (*x.shape[:-2], x.shape[-1], x.shape[-2])
    return lax.optimization_barrier(lax.optimization_barrier(x).swapaxes(-1, -2)[None]).reshape(shape)


def transposed_in_memory(x: jax.Array) -> jax.Array:
    """Exchanges the last two axes; on a CPU as a new array.

    XLA:CPU has a fast product only where the left operand's contracted axis is its last. It would fold a
    transposition into the product before or after it; the barriers and the reshape keep it out. Not on a mesh: there
    the compiler moves data within, and the two forms would stay two branches of the program.
    """
    if on_mesh():
        return x.swapaxes(-1, -2)
    return lax.platform_dependent(x, cpu=_as_new_array, default=lambda x: x.swapaxes(-1, -2))


def dot(
    a: jax.Array,
    b: jax.Array,
    axes_a: Iterable[int],
    axes_b: Iterable[int],
    dtype: str,
    result: DTypeLike = "float32",
) -> jax.Array:
    """Sums products over the given axes of a and b, which have the type `dtype`, in float32, rounded to `result`."""
    contracted = ((tuple(axes_a), tuple(axes_b)), ((), ()))
    kind = {"precision": precision(dtype), "preferred_element_type": result}
    return lax.dot_general(a, b, contracted, **kind)


def _product(x: jax.Array, w: jax.Array, dtype: str, result: DTypeLike = "float32") -> jax.Array:
    return dot(x, w, [x.ndim - 1], [0], dtype, result)


def _input_gradient(dy: jax.Array, w: jax.Array, dtype: str, result: DTypeLike) -> jax.Array:
    outputs = w.ndim - 1
    return dot(dy, w, range(dy.ndim - outputs, dy.ndim), range(1, w.ndim), dtype, result)


def _weight_gradient(x: jax.Array, dy: jax.Array, dtype: str) -> jax.Array:
    return dot(x, dy, range(x.ndim - 1), range(x.ndim - 1), dtype)


# The same products of arrays with two axes each: other forms are slow on a CPU. On a mesh axes stay apart, because two
# that are split cannot be joined without moving data.
def _flat_product(x: jax.Array, w: jax.Array, dtype: str, result: DTypeLike) -> jax.Array:
    flat = _product(_rows(x), _columns(w), dtype, result)
    return flat.reshape(*x.shape[:-1], *w.shape[1:])


def _flat_input_gradient(dy: jax.Array, w: jax.Array, dtype: str, result: DTypeLike) -> jax.Array:
    leading = dy.shape[: dy.ndim - w.ndim + 1]
    flat = _input_gradient(dy.reshape(math.prod(leading), -1), _columns(w), dtype, result)
    return flat.reshape(*leading, -1)


def _flat_weight_gradient(x: jax.Array, dy: jax.Array, dtype: str) -> jax.Array:
    x_MK = _rows(x)
    dy_MN = dy.reshape(len(x_MK), -1)
    dw_KN = lax.optimization_barrier(_product(transposed_in_memory(x_MK), dy_MN, dtype))
    return dw_KN.reshape(x.shape[-1], *dy.shape[x.ndim - 1 :])


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


def _columns(w: jax.Array) -> jax.Array:
    return w.reshape(w.shape[0], -1)


class _Types(NamedTuple):
    """Types of a product: of its operands, its result, and the gradient of its left operand."""

    operands: str
    result: str
    gradient: str


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _matmul(x: jax.Array, w: jax.Array, types: _Types, flat: bool) -> jax.Array:
    return _matmul_forward(x, w, types, flat)[0]


def _matmul_forward(x: jax.Array, w: jax.Array, types: _Types, flat: bool) -> tuple[jax.Array, Any]:
    dtype = types.operands
    rounded = x.astype(dtype)
    y = (_flat_product if flat else _product)(rounded, w.astype(dtype), dtype, types.result)
    # The weight is saved as it came: it is there anyway, a rounded copy of every layer's would be new.
    return y, (to_storage(rounded), w)


def _matmul_backward(types: _Types, flat: bool, saved: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    dtype = types.operands
    x, w = from_storage(saved[0]), saved[1].astype(dtype)
    dy = dy.astype(dtype)
    if flat:
        return _flat_input_gradient(dy, w, dtype, types.gradient), _flat_weight_gradient(x, dy, dtype)
    return _input_gradient(dy, w, dtype, types.gradient), _weight_gradient(x, dy, dtype)


_matmul.defvjp(_matmul_forward, _matmul_backward)


def matmul(x: jax.Array, w: jax.Array, dtype: str, result: str = "float32") -> jax.Array:
    """Computes x @ w over the last axis of x and the first of w, with operands rounded to `dtype` and float32 sums.

    Args:
      x: [..., K], float32 or of the type `dtype`; its gradient has its type.
      w: float32 [K, ...]; its trailing axes become the last axes of the result.
      dtype: "float32" or "bfloat16", what the operands of this product and of its gradients are cast to.
      result: "float32", or `between_products(dtype)` where another product reads the result.
    """
    return jnp.asarray(_matmul(x, w, _Types(dtype, result, x.dtype.name), not on_mesh()))
