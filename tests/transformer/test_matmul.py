"""Products of rounded operands, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax.transformer.kernels.matmul import matmul


@pytest.mark.parametrize("shape", [(1, 1, 4, 8), (1, 5, 4, 8), (3, 130, 64, 8), (2, 16, 8, 6)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matmul_and_its_gradients(shape, dtype):
    B, L, K, N = shape
    random = np.random.default_rng(0)
    x = random.standard_normal((B, L, K)).astype(np.float32)
    w = random.standard_normal((K, 2, N // 2)).astype(np.float32)
    y, pull_back = jax.jit(lambda x, w: jax.vjp(lambda x, w: matmul(x, w, dtype), x, w))(x, w)
    dy = random.standard_normal(y.shape).astype(np.float32)
    dx, dw = jax.jit(pull_back)(dy)
    expected = (
        np.tensordot(x, w, 1),
        np.einsum("blmn,kmn->blk", dy, w),
        np.einsum("blk,blmn->kmn", x, dy),
    )
    for ours, reference in zip((y, dx, dw), expected, strict=True):
        assert ours.dtype == jnp.float32
        error = np.linalg.norm(ours - reference) / np.linalg.norm(reference)
        assert error < (1e-6 if dtype == "float32" else 1e-2)
