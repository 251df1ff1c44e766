"""Area and bilinear resizing against the release's numbers."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from infinity_jax import resize


def test_equals_the_release(golden):
    arrays = load_file(golden / "c_interpolate.safetensors")
    cases = json.loads((golden / "c_interpolate.json").read_text())["cases"]
    for case in cases:
        before, after = (np.asarray(arrays[f"{case['name']}_{side}"]) for side in ("in", "out"))
        before, after = (np.moveaxis(x.reshape(*x.shape[:2], *x.shape[-2:]), 1, -1) for x in (before, after))
        function = resize.area if case["mode"] == "area" else resize.bilinear
        got = function(jnp.asarray(before), tuple(case["size_out"]))
        np.testing.assert_allclose(got, after, rtol=2e-5, atol=1e-5, err_msg=case["name"])


@given(st.integers(1, 40), st.integers(1, 40))
def test_constants_stay_constant(n_in, n_out):
    for matrix in (resize.area_matrix(n_in, n_out), resize.bilinear_matrix(n_in, n_out)):
        assert matrix.shape == (n_out, n_in)
        np.testing.assert_allclose(matrix.sum(1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("function", [resize.area, resize.bilinear])
def test_same_size_changes_nothing(function):
    x = jnp.arange(24.0).reshape(1, 3, 4, 2)
    assert function(x, (3, 4)) is x
