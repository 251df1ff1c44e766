"""Classifier-free guidance: conditional and unconditional rows of a picture, and their mix.

Paper Table 9, docs/spec.md section 7. A picture's conditional row (with its caption) and its unconditional row lie side
by side among the N rows of a batch, so that a mesh keeps them on one device.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from infinity_jax.config import SampleConfig
from infinity_jax.errors import UserError

T = TypeVar("T")


def mix(conditional: jax.Array, unconditional: jax.Array, cfg: jax.Array) -> jax.Array:
    """Computes cfg * conditional + (1 - cfg) * unconditional; cfg 1 is the conditional alone."""
    return cfg * conditional + (1 - cfg) * unconditional


def interleave(*rows_B: jax.Array) -> jax.Array:
    """Joins the conditional and the unconditional rows [B, ...] of all pictures to [2B, ...], a picture's together.

    A part of one row is shared by all pictures; a single part stays as it is.
    """
    pictures = max(len(part) for part in rows_B)
    parts = [jnp.broadcast_to(part, (pictures, *part.shape[1:])) for part in rows_B]
    return jnp.stack(parts, 1).reshape(pictures * len(parts), *parts[0].shape[1:])


def separate(x_N: jax.Array, rows: int) -> jax.Array:
    """Separates what `interleave` joined: [rows, B, ...], conditional before unconditional."""
    return x_N.reshape(-1, rows, *x_N.shape[1:]).swapaxes(0, 1)


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of each picture that run at one scale.

    Attributes:
      cached: rows of a picture in what scales share: 1, or 2 with guidance.
      running: rows that run at this scale: all of them, or 1, the conditional one.
    """

    cached: int
    running: int

    def select(self, tree: T) -> T:
        """Picks the rows that run at this scale from arrays with all rows."""
        return tree if self.running == self.cached else jax.tree.map(lambda x: separate(x, 2)[0], tree)

    def restore(self, tree: T) -> T:
        """Returns all rows from those that ran: to later scales the conditional row stands for the other one too."""
        return tree if self.running == self.cached else jax.tree.map(lambda x: interleave(x, x), tree)

    def repeat(self, x_B: jax.Array) -> jax.Array:
        """Feeds one row [B, ...] for each picture to all of its rows that run."""
        return interleave(*[x_B] * self.running)


def per_scale(value: float | Sequence[float], n_scales: int, name: str) -> Float[np.ndarray, " K"]:
    """Returns a setting as float32 [K]: one number for all scales, or a number each.

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
    """Returns cfg of each scale, float32 [K]: for "pyramid" it grows linearly from 1 to cfg, for "none" it is 1."""
    if guidance == "none":
        return np.ones(n_scales, np.float32)
    if guidance == "pyramid":
        if np.size(cfg) != 1:
            raise UserError(f"pyramid guidance takes one cfg, where it ends; got {np.size(cfg)} values")
        (end,) = per_scale(cfg, 1, "cfg")
        return np.linspace(1.0, end, n_scales, dtype=np.float32)
    return per_scale(cfg, n_scales, "cfg")


class Numbers(NamedTuple):
    """What pictures that are drawn together may differ in.

    Attributes:
      cfg_BK, tau_BK: float32, of each picture at each scale.
      top_p_B: float32.
    """

    cfg_BK: Float[np.ndarray, "B K"]
    tau_BK: Float[np.ndarray, "B K"]
    top_p_B: Float[np.ndarray, " B"]

    def part(self, numbers: Sequence[int]) -> "Numbers":
        """Picks some of the pictures, by number."""
        return Numbers(*(x_B[np.asarray(numbers)] for x_B in self))


def numbers(settings: Sequence[SampleConfig], n_scales: int, pictures: int) -> Numbers:
    """Returns the numbers of so many pictures from their settings, or from one that is the same for all.

    Raises:
      UserError: as `per_scale`.
    """
    cfg_BK = np.stack([strengths(own.guidance, own.cfg, n_scales) for own in settings])
    tau_BK = np.stack([per_scale(own.tau, n_scales, "tau") for own in settings])
    top_p_B = np.array([own.top_p for own in settings], np.float32)
    return Numbers(*(np.repeat(x, pictures // len(settings), 0) for x in (cfg_BK, tau_BK, top_p_B)))
