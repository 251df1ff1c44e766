"""Moves weights between a published state dict and our file, one tensor in memory at a time."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from infinity_jax.errors import UserError
from infinity_jax.files.lazy_tensor import LazyTensor
from infinity_jax.files.safetensors_writer import SafetensorsWriter
from infinity_jax.tools.convert.links import Buffer, Link

_FLOATS = ("float64", "float32", "float16", "bfloat16")


def write_ours(path: Path, tensors: Mapping[str, LazyTensor], links: Sequence[Link | Buffer]) -> None:
    """Writes published tensors, which fit `links`, as our .safetensors file.

    Arrays keep the dtype; those that are put together from tensors of several dtypes get one that holds them all.

    Raises:
      UserError: a tensor is not of a float type, or a buffer holds something else than it should.
    """
    for link in links:
        if isinstance(link, Buffer):
            link.check_values(tensors[link.published].read())
    ours = [link for link in links if isinstance(link, Link)]
    arrays = _our_arrays(tensors, ours)
    link_of = {link.published: link for link in ours}
    with SafetensorsWriter(path, arrays) as writer:
        for name, tensor in tensors.items():  # in the order of the file
            if name in link_of:
                link = link_of[name]
                for ours_path, array in zip(link.ours, link.to_ours(tensor.read()), strict=True):
                    writer.write(ours_path, array.astype(arrays[ours_path][0], copy=False), link.layer)


def _our_arrays(
    tensors: Mapping[str, LazyTensor], links: Sequence[Link]
) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    dtypes: dict[str, np.dtype] = {}
    for link in links:
        dtype = tensors[link.published].dtype
        if dtype.name not in _FLOATS:
            raise UserError(f"{link.published} is {dtype.name}, but weights are {', '.join(_FLOATS)}")
        for path in link.ours:
            dtypes[path] = np.promote_types(dtypes.get(path, dtype), dtype)
    shapes = our_shapes(links)
    return {path: (dtypes[path], shapes[path]) for path in sorted(dtypes)}


def our_shapes(links: Sequence[Link | Buffer]) -> dict[str, tuple[int, ...]]:
    """Maps the path of each of our arrays to its shape, with the layer axis where they are stacked."""
    shapes: dict[str, tuple[int, ...]] = {}
    for link in links:
        if isinstance(link, Link):
            layers = () if link.layer is None else (link.layer + 1,)
            shapes.update({path: max(shapes.get(path, ()), (*layers, *link.shape)) for path in link.ours})
    return shapes


def published_arrays(
    ours: Mapping[str, LazyTensor],
    links: Sequence[Link | Buffer],
    shapes: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
) -> Iterator[np.ndarray]:
    """Yields the published tensors in the order of `links`, each in the dtype that `shapes` has for it."""
    for link in links:
        dtype = shapes[link.published][0]
        if isinstance(link, Buffer):
            yield link.values.astype(dtype)
            continue
        layer = link.layer
        parts = [ours[path] if layer is None else ours[path].row(layer) for path in link.ours]
        yield link.to_published(tuple(part.read() for part in parts)).astype(dtype, copy=False)


def check_ours(path: Path, ours: Mapping[str, LazyTensor], links: Sequence[Link | Buffer]) -> None:
    """Raises UserError unless our file has exactly the arrays of `links`."""
    wanted = our_shapes(links)
    for name in sorted(wanted.keys() | ours.keys()):
        have = ours[name].shape if name in ours else "missing"
        if have != wanted.get(name):
            raise UserError(
                f"{path} is of another model than its config says: {name} is {have} in the file and "
                f"{wanted.get(name, 'missing')} by the config; convert or export it again"
            )


def size_of(tensors: Mapping[str, LazyTensor]) -> int:
    """Adds up the bytes of all values."""
    return sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())
