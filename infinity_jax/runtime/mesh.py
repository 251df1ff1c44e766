"""Meshes of devices: what a user asks for, and how the devices are arranged."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from infinity_jax.config import TransformerConfig
from infinity_jax.config_files import numbers_by_name
from infinity_jax.errors import UserError
from infinity_jax.fields import Checked, Range

# The axes a user names. "fsdp" becomes two mesh axes, see `device_mesh`.
USER_AXES = ("data", "fsdp", "tensor", "sequence")
MESH_AXES = ("data", "fsdp", "fsdp_inner", "tensor", "sequence")

_Devices = Annotated[int, Range(1, 2**20)]


@dataclasses.dataclass(frozen=True)
class MeshConfig(Checked):
    """How many devices each kind of parallelism gets.

    Attributes:
      data: copies of the model; each sees its own part of the batch.
      fsdp: like data, but parameters, gradients and optimiser state are split over them.
      tensor: devices that share each product of a layer.
      sequence: devices that share the tokens of a picture.
      slices: groups of devices with fast links inside and slow ones between; `data` runs over them first.
    """

    data: _Devices = 1
    fsdp: _Devices = 1
    tensor: _Devices = 1
    sequence: _Devices = 1
    slices: _Devices = 1

    def __post_init__(self):
        super().__post_init__()
        if self.data % self.slices:
            raise UserError(
                f"{self.slices} slices need a mesh whose data axis is a multiple of {self.slices}; data is {self.data}"
            )

    @property
    def devices(self) -> int:
        """How many devices the mesh needs."""
        return self.data * self.fsdp * self.tensor * self.sequence


def parse_mesh(text: str, slices: int = 1) -> MeshConfig:
    """Reads "fsdp=8,tensor=2", short enough for a command line; axes that are not named are 1.

    Raises:
      UserError: it is not of that form, or an axis is unknown.
    """
    form = f"AXIS=NUMBER with an axis of {', '.join(USER_AXES)}"
    sizes = numbers_by_name(text, "mesh", form)
    if unknown := sizes.keys() - set(USER_AXES):
        raise UserError(f"mesh {text!r}: {min(unknown)!r} is unknown; write {form}")
    return MeshConfig(**sizes, slices=slices)


def axis_sizes(config: MeshConfig, model: TransformerConfig | None = None) -> tuple[int, ...]:
    """Computes the size of each of `MESH_AXES`.

    Where the width of the model is not divisible by fsdp, fsdp is split: the part that divides it splits the kernels'
    rows, and the rest, "fsdp_inner", their columns. So fsdp=256 works for a width of 2080 = 32 x 65, as 32 x 8.

    Args:
      model: what will be trained; None does not split fsdp.
    Raises:
      UserError: the mesh cannot split the model.
    """
    outer = config.fsdp if model is None else math.gcd(config.fsdp, model.width, model.text_channels)
    inner = config.fsdp // outer
    if model is not None:
        _check_model(config, inner, model)
    return config.data, outer, inner, config.tensor, config.sequence


def device_mesh(
    config: MeshConfig, model: TransformerConfig | None = None, devices: Sequence[Any] | None = None
) -> Mesh:
    """Makes the mesh of the axes `MESH_AXES`, arranged so that neighbours talk over fast links.

    Args:
      model: what will be trained; see `axis_sizes`.
      devices: default all that jax sees.
    Raises:
      UserError: the number of devices is another one, or the mesh cannot split the model.
    """
    devices = list(jax.devices() if devices is None else devices)
    if len(devices) != config.devices:
        raise UserError(
            f"the mesh {_describe(config)} needs {config.devices} devices, there are {len(devices)} "
            f"({devices[0].platform}); change the mesh, or see that all devices are found"
        )
    shape = axis_sizes(config, model)
    if config.slices > 1:
        within = (config.data // config.slices, *shape[1:])
        between = (config.slices, *[1] * (len(shape) - 1))
        try:
            arranged = mesh_utils.create_hybrid_device_mesh(
                within, between, devices, allow_split_physical_axes=True
            )
        except ValueError as error:
            found = len({getattr(device, "slice_index", None) for device in devices} - {None})
            raise UserError(
                f"the mesh wants {config.slices} slices, the devices are of {found or 'none'} ({error}); set "
                "config.mesh.slices to what there is: 1 where all links are alike"
            ) from error
    else:
        arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _describe(config: MeshConfig) -> str:
    return ", ".join(f"{axis}={getattr(config, axis)}" for axis in USER_AXES)


def _check_model(config: MeshConfig, inner: int, model: TransformerConfig) -> None:
    """Raises UserError where the mesh does not divide the model; the message says what would."""
    needs = {
        "heads": (model.heads, config.tensor * config.sequence, "tensor x sequence"),
        "head size": (model.head_size, inner, "fsdp"),
        "width / tensor": (model.width // math.gcd(model.width, config.tensor), inner, "fsdp"),
        "feed-forward width": (model.ffn_width, config.tensor * inner, "tensor x fsdp"),
    }
    for name, (size, parts, axis) in needs.items():
        if size % parts:
            good = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0 and n <= 2 * parts)
            raise UserError(
                f"mesh {_describe(config)}: the model's {name} {size} cannot be split into {parts} (mesh axis {axis}); "
                f"it can be split into {good}"
            )
