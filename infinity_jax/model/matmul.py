"""The dense products of the transformer: low-precision operands, float32 sums, float32 activations.

Values are cast only where they enter a product. That is what the matrix units of TPU and GPU want, and on a CPU
it is the fastest form as well, because element-wise bfloat16 is slower there than float32.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def precision(dtype: str) -> lax.Precision:
    """Of a product whose operands were cast to `dtype`: exact where that is float32 (a TPU would round to bfloat16)."""
    return lax.Precision.HIGHEST if dtype == "float32" else lax.Precision.DEFAULT


def _dot(a, b, contract: tuple[int, int], dtype: str) -> jax.Array:
    return lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        (((contract[0],), (contract[1],)), ((), ())),
        precision=precision(dtype),
        preferred_element_type=jnp.float32,
    )


def _as_new_array(x: jax.Array) -> jax.Array:
    shape = (*x.shape[:-2], x.shape[-1], x.shape[-2])
    return lax.optimization_barrier(lax.optimization_barrier(x).swapaxes(-1, -2)[None]).reshape(shape)


def transposed_in_memory(x: jax.Array) -> jax.Array:
    """The last two axes exchanged; on a CPU as a new array.

    XLA:CPU has a fast product only where the left operand's contracted axis is its last. It would fold a
    transposition into the product before or after it; the barriers and the reshape keep it out.
    """
    return lax.platform_dependent(x, cpu=_as_new_array, default=lambda x: x.swapaxes(-1, -2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x_MK, w_KN, dtype):
    return _dot(x_MK, w_KN, (1, 0), dtype)


def _matmul_forward(x_MK, w_KN, dtype):
    x_MK, w_KN = x_MK.astype(dtype), w_KN.astype(dtype)
    return _dot(x_MK, w_KN, (1, 0), dtype), (x_MK, w_KN)


def _matmul_backward(dtype, saved, dy_MN):
    x_MK, w_KN = saved
    dy_MN = dy_MN.astype(dtype)
    dx_MK = _dot(dy_MN, w_KN, (1, 1), dtype)
    x_KM = transposed_in_memory(x_MK)
    dw_KN = lax.optimization_barrier(_dot(x_KM, dy_MN, (1, 0), dtype))
    return dx_MK, dw_KN


_matmul.defvjp(_matmul_forward, _matmul_backward)


def matmul(x: jax.Array, w: jax.Array, dtype: str) -> jax.Array:
    """x @ w over the last axis of x and the first of w, in float32 with operands rounded to `dtype`.

    Args:
      x: float32 [..., K].
      w: float32 [K, ...]; its trailing axes become the last axes of the result.
      dtype: "float32" or "bfloat16", what the operands of this product and of its gradients are cast to.
    """
    w_KN = w.reshape(w.shape[0], -1)
    y = _matmul(x.reshape(-1, x.shape[-1]), w_KN, dtype)
    return y.reshape(*x.shape[:-1], *w.shape[1:])  # pyright: ignore[reportAttributeAccessIssue]
