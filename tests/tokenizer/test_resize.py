"""Area and bilinear resizing; their numbers are compared with the release's in test_golden.py."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinity_jax.tokenizer import resize


@given(st.integers(1, 40), st.integers(1, 40))
def test_constants_stay_constant(n_in, n_out):
    for matrix in (resize.area_matrix(n_in, n_out), resize.bilinear_matrix(n_in, n_out)):
        assert matrix.shape == (n_out, n_in)
        np.testing.assert_allclose(matrix.sum(1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("function", [resize.area, resize.bilinear])
def test_same_size_changes_nothing(function):
    x = jnp.arange(24.0).reshape(1, 3, 4, 2)
    assert function(x, (3, 4)) is x
