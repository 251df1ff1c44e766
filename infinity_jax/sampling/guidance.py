"""Classifier-free guidance: how the pictures with and without caption are mixed (paper Table 9, spec section 7)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from infinity_jax.errors import UserError


def mix(conditional: jax.Array, unconditional: jax.Array, cfg: jax.Array) -> jax.Array:
    """cfg * conditional + (1 - cfg) * unconditional; cfg 1 is the conditional alone."""
    return cfg * conditional + (1 - cfg) * unconditional


def side_by_side(*halves_B: jax.Array) -> jax.Array:
    """Rows [B * halves, ...] of all halves, those of a picture together, so that a mesh keeps them on one device.

    Args:
      halves_B: [B, ...] each; a half of one row is that of all pictures.
    """
    rows = max(len(half) for half in halves_B)
    same = [jnp.broadcast_to(half, (rows, *half.shape[1:])) for half in halves_B]
    return jnp.stack(same, 1).reshape(rows * len(same), *same[0].shape[1:])


def halves_first(x_N: jax.Array, halves: int) -> jax.Array:
    """[halves, B, ...] from rows side by side."""
    return x_N.reshape(-1, halves, *x_N.shape[1:]).swapaxes(0, 1)


def with_caption(x_N: jax.Array) -> jax.Array:
    """The rows [B, ...] with caption, of rows of two halves side by side."""
    return halves_first(x_N, 2)[0]


def per_scale(value: float | Sequence[float], n_scales: int, name: str) -> Float[np.ndarray, " K"]:
    """A setting as float32 [K]: one number for all scales, or a number each.

    Raises:
      UserError: another count of numbers, or one that is negative or not finite.
    """
    values = np.atleast_1d(np.asarray(value, np.float32))
    if len(values) not in (1, n_scales):
        raise UserError(
            f"{name} has {len(values)} values; give one, or one for each of the {n_scales} scales"
        )
    if not np.isfinite(values).all() or (values < 0).any():
        raise UserError(f"{name} {value} must be finite and not negative")
    return np.broadcast_to(values, (n_scales,)).copy()


def strengths(guidance: str, cfg: float | Sequence[float], n_scales: int) -> Float[np.ndarray, " K"]:
    """cfg of each scale, float32 [K]: for "pyramid" it grows linearly from 1 to cfg, for "none" it is 1."""
    if guidance == "none":
        return np.ones(n_scales, np.float32)
    if guidance == "pyramid":
        if np.size(cfg) != 1:
            raise UserError(f"pyramid guidance takes one cfg, where it ends; got {np.size(cfg)} values")
        (end,) = per_scale(cfg, 1, "cfg")
        return np.linspace(1.0, end, n_scales, dtype=np.float32)
    return per_scale(cfg, n_scales, "cfg")
