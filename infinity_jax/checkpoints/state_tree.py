"""A run's state as the tree that a checkpoint holds.

A state is any dataclass that is a pytree. Its optional parts are the fields whose default is None: one that is None is
left out of the checkpoint, so that checkpoints from before there was such a part are read as they always were. A part
that a run always has and that checkpoints did not always hold is marked with `ZERO_WHERE_ABSENT`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from infinity_jax.runtime.sharding import put

# Key of a field's metadata: a checkpoint without this part is read as if its numbers were 0.
ZERO_WHERE_ABSENT = "zero where absent"


def tree(state: PyTree) -> dict[str, Any]:
    """Takes a state apart by field, without the optional parts that it does not have."""
    parts = ((field, getattr(state, field.name)) for field in dataclasses.fields(state))
    return {field.name: part for field, part in parts if part is not None or field.default is not None}


def abstract(tree: PyTree) -> PyTree:
    """Keeps a tree's shapes, dtypes and shardings without its numbers."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), tree
    )


def absent(target: Any, stored: Mapping[str, Any]) -> dict[str, PyTree]:
    """Makes the parts of `target`, by field, that a checkpoint with arrays of the names `stored` has only as zeros."""
    return {
        field.name: jax.tree.map(_zeros, getattr(target, field.name))
        for field in dataclasses.fields(target)
        if field.metadata.get(ZERO_WHERE_ABSENT)
        and not any(name.split("/")[0] == field.name for name in stored)
    }


def _zeros(like: Any) -> jax.Array:
    zeros, sharding = np.zeros(like.shape, like.dtype), like.sharding
    return jax.numpy.asarray(zeros) if sharding is None else put(zeros, sharding)
