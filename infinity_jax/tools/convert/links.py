"""How published tensors and our arrays hold the same numbers; moves them, one tensor in memory at a time."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import jax
import numpy as np
from jaxtyping import Shaped

from infinity_jax.errors import UserError
from infinity_jax.files.lazy_tensor import LazyTensor
from infinity_jax.files.safetensors_writer import SafetensorsWriter
from infinity_jax.transformer.layers import caption_init
from infinity_jax.transformer.rope2d import to_halves, to_neighbours

_FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Link:
    """One published tensor and where its numbers lie in our parameters.

    Attributes:
      published: its name in the published state dict.
      published_shape: its shape there.
      ours: paths of our arrays, like "blocks/ffn/fc1/kernel"; several where the published tensor joins them
        (queries, keys and values of one linear map).
      shape: the shape of each of our arrays, without the layer axis.
      layer: the row of our arrays if they are stacked over layers, else None.
      layout: "same" (only the shape differs), "linear" ([out,in] there, [in,...out] here),
        "conv" ([out,in,h,w] there, [h,w,in,out] here), "map" ([c,h,w] there, [h,w,c] here) or "rows" (there are more
        or fewer rows there: ours are cut, or filled with freshly drawn ones, and the way back gives the rows that were
        there).
      halved: so many of our arrays, from the first, have their channels as `rope2d.to_halves` puts them.
    """

    published: str
    published_shape: tuple[int, ...]
    ours: tuple[str, ...]
    shape: tuple[int, ...]
    layer: int | None = None
    layout: str = "same"
    halved: int = 0

    def to_ours(self, value: Shaped[np.ndarray, "..."]) -> tuple[np.ndarray, ...]:
        """Makes our arrays, each of `shape` and of the same dtype, one for each path of `ours`.

        Raises:
          UserError: the value has another shape than `published_shape`.
        """
        self.check_shape(value.shape)
        if self.layout == "conv":  # as in linear maps, joined ones follow one another along the output axis
            parts = np.split(value, len(self.ours))
            return tuple(np.ascontiguousarray(part.transpose(2, 3, 1, 0)) for part in parts)
        if self.layout == "map":
            return (np.ascontiguousarray(value.transpose(1, 2, 0)),)
        if self.layout == "rows":
            return (np.concatenate([value[: self.shape[0]], self._fresh_rows(value)]),)
        if self.layout == "same":
            arrays = [part.reshape(self.shape) for part in np.split(value, len(self.ours))]
        else:  # joined maps follow one another along the output axis
            arrays = [_transposed(part).reshape(self.shape) for part in np.split(value, len(self.ours))]
        halved = [np.ascontiguousarray(to_halves(array)) for array in arrays[: self.halved]]
        return (*halved, *arrays[self.halved :])

    def to_published(self, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
        """Makes the published tensor from our arrays: the inverse of `to_ours`."""
        if self.layout == "conv":
            return np.concatenate([array.transpose(3, 2, 0, 1) for array in arrays])
        if self.layout == "map":
            return arrays[0].transpose(2, 0, 1)
        if self.layout == "rows":
            return arrays[0][: self.published_shape[0]]
        arrays = (*map(to_neighbours, arrays[: self.halved]), *arrays[self.halved :])
        if self.layout == "same":
            return np.concatenate([array.reshape(-1) for array in arrays]).reshape(self.published_shape)
        return np.concatenate([_transposed(array.reshape(self.shape[0], -1)) for array in arrays])

    def _fresh_rows(self, value: np.ndarray) -> np.ndarray:
        """Draws the rows that `value` lacks as in an untrained model, always the same ones."""
        missing, channels = max(0, self.shape[0] - len(value)), self.shape[1]
        draw = caption_init(channels)
        return np.asarray(draw(jax.random.key(0), (missing, channels)), value.dtype)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless `shape` is the published one."""
        if tuple(shape) != self.published_shape:
            raise UserError(
                f"{self.published} has shape {list(shape)}; this model needs {list(self.published_shape)} "
                f"(for {', '.join(self.ours)})"
            )


def _transposed(matrix: np.ndarray) -> np.ndarray:
    """Copies a matrix transposed, in strips that fit the processor's cache: about four times faster than in one go."""
    out = np.empty(matrix.shape[::-1], matrix.dtype)
    for start in range(0, len(matrix), 128):
        out[:, start : start + 128] = matrix[start : start + 128].T
    return out


@dataclasses.dataclass(frozen=True, eq=False)
class Buffer:
    """A published tensor that is no parameter: its values follow from the config, and we have nothing for it.

    Attributes:
      published: its name in the published state dict.
      values: what it holds.
    """

    published: str
    values: np.ndarray

    @property
    def published_shape(self) -> tuple[int, ...]:
        """Returns its shape in the published state dict."""
        return self.values.shape

    def check_values(self, values: Shaped[np.ndarray, "..."]) -> None:
        """Raises UserError unless these are the buffer's values, in whatever dtype."""
        if not np.array_equal(values, self.values.astype(values.dtype)):
            raise UserError(
                f"the buffer {self.published} holds {values.reshape(-1)[:4]}..., not "
                f"{self.values.reshape(-1)[:4]}... as in every published file; is the file damaged?"
            )


class Statistic(Buffer):
    """A published tensor that its training counted and no model reads: we do not keep it, and give back `values`."""

    def check_values(self, values: Shaped[np.ndarray, "..."]) -> None:
        """Takes any values."""


class HasShape(Protocol):
    """Anything with a shape: an array, or a tensor that still lies in its file."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def differences(tensors: Mapping[str, HasShape], links: Sequence[Link | Buffer]) -> list[str]:
    """Says what keeps published tensors from being exactly those of `links`, one sentence each; [] if nothing does.

    Names at most eight tensors of each sort.
    """
    wanted = {link.published: link.published_shape for link in links}
    sentences = []
    if missing := [name for name in wanted if name not in tensors]:
        sentences.append(f"{len(missing)} tensors are missing: {_listed(missing)}")
    if unknown := [name for name in tensors if name not in wanted]:
        sentences.append(f"{len(unknown)} tensors are unknown: {_listed(unknown)}")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    other = [name for name, shape in wanted.items() if shapes.get(name, shape) != shape]
    if other:
        found = [f"{name} has {list(shapes[name])}, expected {list(wanted[name])}" for name in other]
        sentences.append(f"{len(other)} tensors have another shape: {_listed(found)}")
    return sentences


def _listed(items: Sequence[str]) -> str:
    return "; ".join(items[:8]) + (f"; and {len(items) - 8} more" if len(items) > 8 else "")


def same(
    published: str, ours: str, shape: tuple[int, ...], published_shape: tuple[int, ...] | None = None, **layer
) -> Link:
    """Makes a link that changes the shape at most; `published_shape` is the flat one if it is not given."""
    return Link(published, published_shape or (math.prod(shape),), (ours,), shape, **layer)


def linear(published: str, ours: tuple[str, ...], shape: tuple[int, ...], **layer) -> Link:
    """Makes the link of a linear map (or several joined ones); `shape` is [in, ...out] of each."""
    outputs = len(ours) * math.prod(shape[1:])
    return Link(published, (outputs, shape[0]), ours, shape, layout="linear", **layer)


def conv(published: str, ours: str | tuple[str, ...], shape: tuple[int, int, int, int], **layer) -> Link:
    """Makes the link of a convolution (or several joined ones); `shape` is our [h,w,in,out] of each."""
    height, width, inputs, outputs = shape
    names = (ours,) if isinstance(ours, str) else ours
    return Link(
        published, (outputs * len(names), inputs, height, width), names, shape, layout="conv", **layer
    )


def dense(published: str, ours: str, shape: tuple[int, ...], layer: int | None = None) -> list[Link]:
    """Makes the links of one linear map's weight and bias; `shape` is our kernel's, [in, ...out]."""
    return [
        linear(f"{published}.weight", (f"{ours}/kernel",), shape, layer=layer),
        same(f"{published}.bias", f"{ours}/bias", shape[1:], layer=layer),
    ]


def zero_key_bias(published: str, width: int) -> Buffer:
    """Makes the key bias of zeros that the releases store beside the biases that are learned."""
    return Buffer(published, np.zeros(width, np.float32))


def in_published_order(links: Sequence[Link | Buffer]) -> list[Link | Buffer]:
    """Makes the links to arrays of ours whose channels are all in the published order, as those of old folders are."""
    return [dataclasses.replace(link, halved=0) if isinstance(link, Link) else link for link in links]


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
