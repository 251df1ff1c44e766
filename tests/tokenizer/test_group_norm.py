"""GroupNorm of low-precision maps: float32 statistics in two passes, and nothing in float32 kept for the gradient."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.tokenizer.group_norm import EPSILON, GROUPS, group_norm_swish

SHAPE = (2, 16, 12, 64)
PARAMS = {"scale": 1 + 0.1 * jnp.arange(64.0), "bias": jnp.linspace(-1, 1, 64)}


def in_float64(x) -> np.ndarray:
    grouped = np.asarray(x, np.float64).reshape(2, 16 * 12, GROUPS, 2)
    mean, variance = (f(grouped, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    normal = ((grouped - mean) / np.sqrt(variance + EPSILON)).reshape(SHAPE)
    normal = normal * np.asarray(PARAMS["scale"], np.float64) + np.asarray(PARAMS["bias"], np.float64)
    return normal / (1 + np.exp(-normal))


def test_values_far_from_zero_keep_their_variance():
    """A mean 1000 times the deviation: in one pass float32 would lose the variance."""
    x = 1000 + jax.random.normal(jax.random.key(0), SHAPE)
    np.testing.assert_allclose(group_norm_swish(x, PARAMS), in_float64(x), atol=2e-2)
    norm = nn.GroupNorm(GROUPS, epsilon=EPSILON)
    in_one_pass = nn.swish(jnp.asarray(norm.apply({"params": PARAMS}, x)))
    assert np.abs(in_one_pass - in_float64(x)).max() > 0.1


def test_bfloat16_in_and_out_and_rounded_once():
    x = jax.random.normal(jax.random.key(0), SHAPE, jnp.bfloat16)
    ours = group_norm_swish(x, PARAMS)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), in_float64(x), rtol=2**-8, atol=1e-5)


def test_for_the_gradient_only_the_map_is_kept():
    x = jax.random.normal(jax.random.key(0), SHAPE, jnp.bfloat16)
    _, backward = jax.vjp(group_norm_swish, x, PARAMS)
    kept = [leaf for leaf in jax.tree.leaves(backward) if leaf.size >= x.size]
    assert [leaf.dtype for leaf in kept] == [jnp.bfloat16]


def test_gradients_are_those_of_the_plain_form():
    x = jax.random.normal(jax.random.key(0), SHAPE)
    weight = jax.random.normal(jax.random.key(1), SHAPE)
    norm = nn.GroupNorm(GROUPS, epsilon=EPSILON)
    ours = jax.grad(lambda x, p: jnp.vdot(group_norm_swish(x, p), weight), (0, 1))(x, PARAMS)
    plain = jax.grad(
        lambda x, p: jnp.vdot(nn.swish(jnp.asarray(norm.apply({"params": p}, x))), weight), (0, 1)
    )(x, PARAMS)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert np.abs(a - b).max() < 1e-5 * np.abs(b).max()
