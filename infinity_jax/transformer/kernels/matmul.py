"""The dense products of the transformer: low-precision operands, float32 sums, float32 activations.

Values are cast only where they enter a product. That is what the matrix units of TPU and GPU want, and on a CPU
it is the fastest form as well, because element-wise bfloat16 is slower there than float32.
"""

import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from infinity_jax.runtime.sharding import on_mesh
from infinity_jax.transformer.kernels.storage import from_storage, to_storage


def precision(dtype: str) -> lax.Precision:
    """Chooses the precision of a product of operands in `dtype`: exact for float32, which a TPU would round."""
    return lax.Precision.HIGHEST if dtype == "float32" else lax.Precision.DEFAULT


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


def dot(a: jax.Array, b: jax.Array, axes_a: Iterable[int], axes_b: Iterable[int], dtype: str) -> jax.Array:
    """Sums products over the given axes of a and b, which have the type `dtype`, in float32."""
    contracted = ((tuple(axes_a), tuple(axes_b)), ((), ()))
    kind = {"precision": precision(dtype), "preferred_element_type": jnp.float32}
    return lax.dot_general(a, b, contracted, **kind)


def _product(x: jax.Array, w: jax.Array, dtype: str) -> jax.Array:
    return dot(x, w, [x.ndim - 1], [0], dtype)


def _input_gradient(dy: jax.Array, w: jax.Array, dtype: str) -> jax.Array:
    outputs = w.ndim - 1
    return dot(dy, w, range(dy.ndim - outputs, dy.ndim), range(1, w.ndim), dtype)


def _weight_gradient(x: jax.Array, dy: jax.Array, dtype: str) -> jax.Array:
    return dot(x, dy, range(x.ndim - 1), range(x.ndim - 1), dtype)


# The same products of arrays with two axes each: other forms are slow on a CPU. On a mesh axes stay apart, because two
# that are split cannot be joined without moving data.
def _flat_product(x: jax.Array, w: jax.Array, dtype: str) -> jax.Array:
    flat = _product(_rows(x), _columns(w), dtype)
    return flat.reshape(*x.shape[:-1], *w.shape[1:])


def _flat_input_gradient(dy: jax.Array, w: jax.Array, dtype: str) -> jax.Array:
    leading = dy.shape[: dy.ndim - w.ndim + 1]
    return _input_gradient(dy.reshape(math.prod(leading), -1), _columns(w), dtype).reshape(*leading, -1)


def _flat_weight_gradient(x: jax.Array, dy: jax.Array, dtype: str) -> jax.Array:
    x_MK = _rows(x)
    dy_MN = dy.reshape(len(x_MK), -1)
    dw_KN = lax.optimization_barrier(_product(transposed_in_memory(x_MK), dy_MN, dtype))
    return dw_KN.reshape(x.shape[-1], *dy.shape[x.ndim - 1 :])


def _rows(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


def _columns(w: jax.Array) -> jax.Array:
    return w.reshape(w.shape[0], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _matmul(x: jax.Array, w: jax.Array, dtype: str, flat: bool) -> jax.Array:
    return _matmul_forward(x, w, dtype, flat)[0]


def _matmul_forward(x: jax.Array, w: jax.Array, dtype: str, flat: bool) -> tuple[jax.Array, Any]:
    rounded = x.astype(dtype)
    # The weight is saved as it came: it is there anyway, a rounded copy of every layer's would be new.
    return (_flat_product if flat else _product)(rounded, w.astype(dtype), dtype), (to_storage(rounded), w)


def _matmul_backward(dtype: str, flat: bool, saved: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = from_storage(saved[0]), saved[1].astype(dtype)
    dy = dy.astype(dtype)
    if flat:
        return _flat_input_gradient(dy, w, dtype), _flat_weight_gradient(x, dy, dtype)
    return _input_gradient(dy, w, dtype), _weight_gradient(x, dy, dtype)


_matmul.defvjp(_matmul_forward, _matmul_backward)


def matmul(x: jax.Array, w: jax.Array, dtype: str) -> jax.Array:
    """Computes x @ w over the last axis of x and the first of w, in float32 with operands rounded to `dtype`.

    Args:
      x: float32 [..., K].
      w: float32 [K, ...]; its trailing axes become the last axes of the result.
      dtype: "float32" or "bfloat16", what the operands of this product and of its gradients are cast to.
    """
    return jnp.asarray(_matmul(x, w, dtype, not on_mesh()))
