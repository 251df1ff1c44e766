"""Weights of well-known networks from their torch files, strict about names and shapes."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Num

from infinity_jax.errors import UserError
from infinity_jax.files.tensors import open_tensors


def read_network(
    path: str | Path,
    shapes: Mapping[str, tuple[int, ...]],
    network: str,
    where: str,
    not_needed: tuple[str, ...] = (),
) -> dict[str, np.ndarray]:
    """Reads the tensors of a network, float32 by name.

    Args:
      path: a .pth, .pt, .bin or .safetensors file, or a folder of them.
      shapes: name -> shape of all tensors that are wanted.
      network: what it should be, for errors, like "VGG16".
      where: where such a file usually comes from, for errors.
      not_needed: the file may hold further tensors whose names start or end so; they are not read.
    Raises:
      UserError: the file is missing or damaged, lacks a tensor, has one of another shape, or one that the network
        does not have.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"no file {path} with the weights of {network}; {where}")
    tensors = open_tensors(path, network)
    for name, shape in shapes.items():
        shape_there = tuple(tensors[name].shape) if name in tensors else "missing"
        if shape_there != shape:
            raise UserError(
                f"{path} is not {network}: {name} is {shape_there} there, wanted {shape}; {where}"
            )
    for name in tensors:
        if name not in shapes and not (name.startswith(not_needed) or name.endswith(not_needed)):
            raise UserError(
                f"{path} is not {network}, which has no {name} {tuple(tensors[name].shape)}; {where}"
            )
    return {name: tensors[name].read().astype(np.float32) for name in shapes}


def convolution_kernel(weight_OIHW: np.ndarray) -> np.ndarray:
    """Transposes torch's kernel [out, in, height, width] to the order of flax, [height, width, in, out]."""
    return np.ascontiguousarray(weight_OIHW.transpose(2, 3, 1, 0))


def fold_batch_norm(
    state: Mapping[str, np.ndarray], conv: str, norm: str, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Folds a batch norm into the convolution before it: torch's kernel [out, in, height, width] and a bias [out].

    Takes a state dict and the names of the two in it.
    """
    scale = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + epsilon)
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return state[f"{conv}.weight"] * scale[:, None, None, None], bias


def filled_batches(
    image_NHW3: Num[np.ndarray, "N H W 3"], size: int
) -> Iterator[tuple[Num[np.ndarray, "B H W 3"], int]]:
    """Yields (batch of exactly `size` pictures, how many count): copies of the last one fill up the last batch."""
    for start in range(0, len(image_NHW3), size):
        batch = image_NHW3[start : start + size]
        filling = np.repeat(batch[-1:], size - len(batch), axis=0)
        yield np.concatenate([batch, filling]), len(batch)
