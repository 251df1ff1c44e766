"""Parameters from a published state dict in memory, where `infinity-jax convert` goes from file to file."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from infinity_jax.errors import UserError
from infinity_jax.tools.convert.links import Buffer, Link, differences


def parameter_count(links: Iterable[Link | Buffer]) -> int:
    """Counts the parameters of a model; buffers do not count."""
    return sum(math.prod(link.published_shape) for link in links if isinstance(link, Link))


def params_from(
    tensors: Mapping[str, Shaped[np.ndarray, "..."]], links: Sequence[Link | Buffer]
) -> dict[str, Any]:
    """Makes our parameters from a published state dict in memory.

    Args:
      tensors: name -> array of any float type.
      links: of the model, in the names of the state dict.
    Returns:
      nested dict of float32 NumPy arrays; blocks stacked over layers.
    Raises:
      UserError: a tensor is missing, unknown or of another shape, or a buffer holds something else.
    """
    if found := differences(tensors, links):
        raise UserError(f"the state dict does not fit: {'. '.join(found)}")
    rows: dict[str, dict[int | None, np.ndarray]] = {}
    for link in links:
        if isinstance(link, Buffer):
            link.check_values(tensors[link.published])
            continue
        arrays = link.to_ours(np.asarray(tensors[link.published]).astype(np.float32))
        for path, array in zip(link.ours, arrays, strict=True):
            rows.setdefault(path, {})[link.layer] = array
    params: dict[str, Any] = {}
    for path, layers in rows.items():
        *parents, leaf = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = layers[None] if None in layers else np.stack([layers[i] for i in range(len(layers))])
    return params
