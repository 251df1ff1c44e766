"""Classifier-free guidance: how the pictures with and without caption are mixed (paper Table 9, spec section 7)."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from infinity_jax.errors import UserError

GUIDANCE = ("logits", "features", "pyramid", "none")


def mix(conditional: jax.Array, unconditional: jax.Array, cfg: jax.Array) -> jax.Array:
    """cfg * conditional + (1 - cfg) * unconditional; cfg 1 is the conditional alone."""
    return cfg * conditional + (1 - cfg) * unconditional


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
