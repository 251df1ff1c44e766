"""Inception-v3 up to its pooled features, as FID takes them.

Architecture: Szegedy et al., arXiv 1512.00567, in the form of the network of 2015-12-05 with which FID is defined
(Heusel et al., arXiv 1706.08500) and of its port to torch in the package pytorch-fid, which differs from torchvision's
in its poolings: a mean counts no padding, and the last block takes a maximum. The weights are not part of this project:
the user names their torch file.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Num

from infinity_jax.metrics.network_weights import (
    convolution_kernel,
    filled_batches,
    fold_batch_norm,
    read_network,
)
from infinity_jax.tokenizer import resize

FEATURES = 2048
SIDE = 299
BATCH_NORM_EPSILON = 1e-3
COMES_FROM = (
    "it is the file pt_inception-2015-12-05-6726825d.pth that the Python package pytorch-fid downloads; "
    "torchvision's inception_v3 is another network"
)
_BATCH = 16


class Conv(NamedTuple):
    """A convolution, its batch norm and a relu, under the name that torch's file has for it."""

    name: str
    channels: int
    kernel: tuple[int, int]
    stride: int = 1
    padded: bool = True  # so that stride 1 keeps the size


# Convolutions one after the other; several in the place of one read the same and are put side by side.
Branch = tuple[Conv | tuple[Conv, ...], ...]


class Block(NamedTuple):
    """Branches side by side, the last of them a 3x3 pooling with a 1x1 convolution to `projection` channels.

    "halving" is a maximum with stride 2 and no convolution.
    """

    branches: tuple[Branch, ...]
    pooling: Literal["mean", "maximum", "halving"]
    projection: int = 0


def _conv(name: str, channels: int, height: int, width: int = 0) -> Conv:
    return Conv(name, channels, (height, width or height))


def _halving(name: str, channels: int) -> Conv:
    return Conv(name, channels, (3, 3), stride=2, padded=False)


def _with_5x5(projection: int) -> Block:
    five = (_conv("branch5x5_1", 48, 1), _conv("branch5x5_2", 64, 5))
    three = (_conv("branch3x3dbl_1", 64, 1), _conv("branch3x3dbl_2", 96, 3), _conv("branch3x3dbl_3", 96, 3))
    return Block(((_conv("branch1x1", 64, 1),), five, three), "mean", projection)


def _with_7x7(inner: int) -> Block:
    once = (
        _conv("branch7x7_1", inner, 1),
        _conv("branch7x7_2", inner, 1, 7),
        _conv("branch7x7_3", 192, 7, 1),
    )
    twice = (
        _conv("branch7x7dbl_1", inner, 1),
        _conv("branch7x7dbl_2", inner, 7, 1),
        _conv("branch7x7dbl_3", inner, 1, 7),
        _conv("branch7x7dbl_4", inner, 7, 1),
        _conv("branch7x7dbl_5", 192, 1, 7),
    )
    return Block(((_conv("branch1x1", 192, 1),), once, twice), "mean", 192)


def _with_forks(pooling: Literal["mean", "maximum"]) -> Block:
    def fork(name: str) -> tuple[Conv, Conv]:
        return _conv(f"{name}a", 384, 1, 3), _conv(f"{name}b", 384, 3, 1)

    once = (_conv("branch3x3_1", 384, 1), fork("branch3x3_2"))
    twice = (_conv("branch3x3dbl_1", 448, 1), _conv("branch3x3dbl_2", 384, 3), fork("branch3x3dbl_3"))
    return Block(((_conv("branch1x1", 320, 1),), once, twice), pooling, 192)


# Two parts, each followed by a 3x3 maximum with stride 2.
STEM = (
    (
        _halving("Conv2d_1a_3x3", 32),
        Conv("Conv2d_2a_3x3", 32, (3, 3), padded=False),
        _conv("Conv2d_2b_3x3", 64, 3),
    ),
    (_conv("Conv2d_3b_1x1", 80, 1), Conv("Conv2d_4a_3x3", 192, (3, 3), padded=False)),
)
BLOCKS = {
    "Mixed_5b": _with_5x5(32),
    "Mixed_5c": _with_5x5(64),
    "Mixed_5d": _with_5x5(64),
    "Mixed_6a": Block(
        (
            (_halving("branch3x3", 384),),
            (_conv("branch3x3dbl_1", 64, 1), _conv("branch3x3dbl_2", 96, 3), _halving("branch3x3dbl_3", 96)),
        ),
        "halving",
    ),
    "Mixed_6b": _with_7x7(128),
    "Mixed_6c": _with_7x7(160),
    "Mixed_6d": _with_7x7(160),
    "Mixed_6e": _with_7x7(192),
    "Mixed_7a": Block(
        (
            (_conv("branch3x3_1", 192, 1), _halving("branch3x3_2", 320)),
            (
                _conv("branch7x7x3_1", 192, 1),
                _conv("branch7x7x3_2", 192, 1, 7),
                _conv("branch7x7x3_3", 192, 7, 1),
                _halving("branch7x7x3_4", 192),
            ),
        ),
        "halving",
    ),
    "Mixed_7b": _with_forks("mean"),
    "Mixed_7c": _with_forks("maximum"),
}


class InceptionV3(nn.Module):
    """Pooled features float32 [B,2048] of pictures float32 [B,H,W,3] in [-1,1], RGB, of any size; all are >= 0.

    They are resized to 299x299, bilinearly and without antialiasing, as pytorch-fid does. Batch norms are folded into
    the convolutions.
    """

    @nn.compact
    def __call__(self, image_BHW3: Float[Array, "B H W 3"]) -> Float[Array, "B 2048"]:
        x = resize.bilinear(image_BHW3, (SIDE, SIDE))
        for part in STEM:
            for conv in part:
                x = self._convolved(x, "", conv)
            x = nn.max_pool(x, (3, 3), (2, 2))
        for name, block in BLOCKS.items():
            x = self._block(x, f"{name}.", block)
        return x.mean(axis=(1, 2))

    def _convolved(self, x: jax.Array, prefix: str, conv: Conv) -> jax.Array:
        padding = "SAME" if conv.padded else "VALID"
        strides = (conv.stride, conv.stride)
        convolution = nn.Conv(conv.channels, conv.kernel, strides, padding=padding, name=prefix + conv.name)
        return nn.relu(convolution(x))

    def _block(self, x: jax.Array, prefix: str, block: Block) -> jax.Array:
        results = []
        for branch in block.branches:
            y = x
            for step in branch:
                forks = step if not isinstance(step, Conv) else (step,)
                y = jnp.concatenate([self._convolved(y, prefix, conv) for conv in forks], axis=-1)
            results.append(y)
        if block.pooling == "halving":
            pooled = nn.max_pool(x, (3, 3), (2, 2))
        elif block.pooling == "maximum":
            pooled = nn.max_pool(x, (3, 3), (1, 1), "SAME")
        else:
            pooled = nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)
        if block.projection:
            pooled = self._convolved(pooled, prefix, _projection(block))
        return jnp.concatenate([*results, pooled], axis=-1)


def _projection(block: Block) -> Conv:
    return _conv("branch_pool", block.projection, 1)


def _convolutions() -> Iterator[tuple[str, int, Conv]]:
    """Yields (full name, input channels, description) of every convolution."""
    channels = 3
    for conv in (conv for part in STEM for conv in part):
        yield conv.name, channels, conv
        channels = conv.channels
    for name, block in BLOCKS.items():
        total = block.projection or channels
        for branch in block.branches:
            before = channels
            for step in branch:
                forks = step if not isinstance(step, Conv) else (step,)
                yield from ((f"{name}.{conv.name}", before, conv) for conv in forks)
                before = sum(conv.channels for conv in forks)
            total += before
        if block.projection:
            yield f"{name}.branch_pool", channels, _projection(block)
        channels = total


def torch_shapes() -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of all tensors that are read from the torch file."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, before, conv in _convolutions():
        shapes[f"{name}.conv.weight"] = (conv.channels, before, *conv.kernel)
        norms = ("weight", "bias", "running_mean", "running_var")
        shapes |= {f"{name}.bn.{norm}": (conv.channels,) for norm in norms}
    return shapes


def load_inception(file: str | Path) -> dict[str, Any]:
    """Loads the weights as variables of `InceptionV3`: {"params": nested dict of float32 arrays}.

    Args:
      file: pt_inception-2015-12-05-6726825d.pth of pytorch-fid; its classifier may be missing.
    Raises:
      UserError: it is missing, damaged or of another network; the message says where it usually comes from.
    """
    not_needed = ("fc.", ".num_batches_tracked")
    state = read_network(file, torch_shapes(), "the Inception-v3 of FID", COMES_FROM, not_needed)
    params = {}
    for name, _, _ in _convolutions():
        weight, bias = fold_batch_norm(state, f"{name}.conv", f"{name}.bn", BATCH_NORM_EPSILON)
        params[name] = {"kernel": convolution_kernel(weight), "bias": bias}
    return {"params": jax.tree.map(jnp.asarray, params)}


def inception_features(
    variables: dict, image_NHW3: Num[np.ndarray, "N H W 3"]
) -> Float[np.ndarray, "N 2048"]:
    """Computes features float32 [N,2048] of pictures 0..255 of one size, uint8 or float32, in batches of one size."""
    features = [np.zeros((0, FEATURES), np.float32)]
    for batch, n in filled_batches(image_NHW3, _BATCH):
        features.append(np.asarray(_batch_features(variables, batch))[:n])
    return np.concatenate(features)


@jax.jit
def _batch_features(variables: dict, image_BHW3: Num[Array, "B H W 3"]) -> Float[Array, "B 2048"]:
    with jax.default_matmul_precision("highest"):  # as the reference, on accelerators too
        return jnp.asarray(InceptionV3().apply(variables, image_BHW3.astype(jnp.float32) / 127.5 - 1.0))
