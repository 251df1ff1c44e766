"""How one published tensor and our arrays hold the same numbers, in both directions."""

import dataclasses
import math

import numpy as np
from jaxtyping import Shaped

from infinity_jax.errors import UserError


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
      layout: "same" (only the shape differs), "linear" ([out,in] there, [in,...out] here) or
        "conv" ([out,in,h,w] there, [h,w,in,out] here).
    """

    published: str
    published_shape: tuple[int, ...]
    ours: tuple[str, ...]
    shape: tuple[int, ...]
    layer: int | None = None
    layout: str = "same"

    def to_ours(self, value: Shaped[np.ndarray, "..."]) -> tuple[np.ndarray, ...]:
        """Our arrays, each of `shape` and of the same dtype, one for each path of `ours`.

        Raises:
          UserError: the value has another shape than `published_shape`.
        """
        self.check_shape(value.shape)
        if self.layout == "conv":
            return (np.ascontiguousarray(value.transpose(2, 3, 1, 0)),)
        if self.layout == "same":
            return (value.reshape(self.shape),)
        rows = np.split(value, len(self.ours))  # joined maps follow one another along the output axis
        return tuple(np.ascontiguousarray(part.T).reshape(self.shape) for part in rows)

    def to_published(self, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
        """The published tensor from our arrays: the inverse of `to_ours`."""
        if self.layout == "conv":
            return np.ascontiguousarray(arrays[0].transpose(3, 2, 0, 1))
        if self.layout == "same":
            return arrays[0].reshape(self.published_shape)
        return np.concatenate([array.reshape(self.shape[0], -1).T for array in arrays])

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError unless `shape` is the published one."""
        if tuple(shape) != self.published_shape:
            raise UserError(
                f"{self.published} has shape {list(shape)}; this model needs {list(self.published_shape)} "
                f"(for {', '.join(self.ours)})"
            )


def same(
    published: str, ours: str, shape: tuple[int, ...], published_shape: tuple[int, ...] | None = None, **layer
) -> Link:
    """A link that changes the shape at most; `published_shape` is the flat one if it is not given."""
    return Link(published, published_shape or (math.prod(shape),), (ours,), shape, **layer)


def linear(published: str, ours: tuple[str, ...], shape: tuple[int, ...], **layer) -> Link:
    """A link of a linear map (or several joined ones); `shape` is [in, ...out] of each."""
    outputs = len(ours) * math.prod(shape[1:])
    return Link(published, (outputs, shape[0]), ours, shape, layout="linear", **layer)


def conv(published: str, ours: str, shape: tuple[int, int, int, int]) -> Link:
    """A link of a convolution; `shape` is our [h,w,in,out]."""
    height, width, inputs, outputs = shape
    return Link(published, (outputs, inputs, height, width), (ours,), shape, layout="conv")
