"""One batch over several processes: which rows a process reads, and the global arrays they become."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int


def rows_here(sharding: jax.sharding.Sharding, batch_size: int) -> Int[np.ndarray, " n"]:
    """Finds the rows of a batch that lie on this process's devices, in order.

    Processes that share the work on the same pictures (tensor or sequence parallelism) have the same rows.
    """
    places = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[place] for place in places]))


def put(
    batch: Mapping[str, np.ndarray],
    rows: Int[np.ndarray, " n"],
    batch_size: int,
    sharding: jax.sharding.Sharding,
) -> dict[str, jax.Array]:
    """Lays a batch out over the devices of all processes, as global arrays [batch_size, ...].

    Args:
      batch: arrays of at least the rows of this process, [n, ...].
      rows: which rows of the whole batch those are, in order.
      sharding: of the first axis.
    """

    def arrays(local: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            first, last, _ = index[0].indices(batch_size)
            begin = np.searchsorted(rows, first)
            return local[begin : begin + last - first]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, part)

    return {name: arrays(np.asarray(local)) for name, local in batch.items()}


def described(
    arrays: Mapping[str, tuple[tuple[int, ...], Any]], batch_size: int, sharding: jax.sharding.Sharding
) -> dict[str, jax.ShapeDtypeStruct]:
    """Describes a batch as it lies on the devices.

    Args:
      arrays: of each array its shape without the first axis, and its dtype.
      sharding: of the first axis.
    """
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in arrays.items()
    }
