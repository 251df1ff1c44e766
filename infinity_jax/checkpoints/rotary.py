"""In which order a checkpoint has the channels of self-attention's queries and keys.

Now it is that of `rope2d.rotate`, and a checkpoint says so: config.json of a folder, item `data` of a run's checkpoint.
Earlier ones say nothing. They have the release's order, and are reordered when they are read: parameters, their
average, and the optimiser's moments.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from infinity_jax.errors import UserError
from infinity_jax.runtime import trees
from infinity_jax.transformer.rope2d import to_halves

KEY, HALVES, NEIGHBOURS = "rotary_pairs", "halves", "neighbours"
MARK = {KEY: HALVES}
_REORDERED = re.compile(r"(?:^|/)self_attention/(?:query/(?:kernel|bias)|key/kernel)$")


def order_of(marks: Mapping[str, Any]) -> str:
    """Reads the order from what a checkpoint notes; UserError if it is neither of the two that there are."""
    order = marks.get(KEY, NEIGHBOURS)
    if order not in (HALVES, NEIGHBOURS):
        raise UserError(
            f"{KEY} is {order!r}; this version knows {HALVES!r} and {NEIGHBOURS!r}. Use the version that wrote it"
        )
    return order


def in_halves(tree: PyTree, marks: Mapping[str, Any]) -> PyTree:
    """Brings what a checkpoint holds into the present order; arrays stay on their devices.

    Args:
      tree: arrays by the names of parameters, at the end of whatever path: also averages and moments.
      marks: what the checkpoint notes.
    """
    if order_of(marks) == HALVES:
        return tree
    return jax.tree_util.tree_map_with_path(lambda path, x: _reordered(trees.parameter_name(path), x), tree)


def placing_in_halves(
    place: Callable[[str, Any], Any], marks: Mapping[str, Any]
) -> Callable[[str, Any], Any]:
    """Makes `place`, which is told name and array, get them in the present order. Arguments as in `in_halves`."""
    if order_of(marks) == HALVES:
        return place
    return lambda name, x: place(name, _reordered(name, x))


def _reordered(name: str, x: Any) -> Any:
    if not _REORDERED.search(name):
        return x
    if isinstance(x, np.ndarray):
        return np.ascontiguousarray(to_halves(x))
    return jax.jit(to_halves, out_shardings=x.sharding)(x)
