"""Random streams by name and step, so that resuming a run needs no stored key."""

import zlib

import jax
from jaxtyping import Array, Int, Key


def stream(key: Key[Array, ""], name: str, step: Int[Array, ""] | int) -> Key[Array, ""]:
    """Derives the key of the random stream `name` at training step `step`.

    The same (key, name, step) always gives the same stream, whatever ran before.
    """
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), step)


def seed_of(name: str, seed: int) -> int:
    """Derives a seed for numpy's generators on the host from the run's seed and the stream's name."""
    return zlib.crc32(f"{name}/{seed}".encode())
