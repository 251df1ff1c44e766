"""Which device holds what: the mesh, one dataclass of rules from logical to mesh axes, and strict checks.

Every parameter names its dimensions ("embed", "mlp", ...: see `model/layers.py`). `ShardingRules` says over which
mesh axes each name is split; nothing else in the package knows about devices.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from infinity_jax.config import Section, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.optim import parameter_name
from infinity_jax.train_state import TrainState

# The axes a user names. "fsdp" becomes two mesh axes, see `device_mesh`.
USER_AXES = ("data", "fsdp", "tensor", "sequence")
MESH_AXES = ("data", "fsdp", "fsdp_inner", "tensor", "sequence")
LARGE = 2**20  # Elements: a larger parameter must not be left whole on every device.

Axes = tuple[str, ...]
AnyMesh = Mesh | AbstractMesh  # of devices, or only of their number


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices each kind of parallelism gets.

    Attributes:
      data: copies of the model; each sees its own part of the batch.
      fsdp: like data, but parameters, gradients and optimiser state are split over them.
      tensor: devices that share each product of a layer.
      sequence: devices that share the tokens of a picture.
      slices: groups of devices with fast links inside and slow ones between; `data` runs over them first.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    slices: int = 1

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise UserError(
                    f"mesh axis {field.name} is {getattr(self, field.name)}; it must be at least 1"
                )
        if self.data % self.slices:
            raise UserError(
                f"{self.slices} slices need a mesh whose data axis is a multiple of {self.slices}; data is {self.data}"
            )

    @property
    def devices(self) -> int:
        """How many devices the mesh needs."""
        return self.data * self.fsdp * self.tensor * self.sequence


def parse_mesh(text: str, slices: int = 1) -> MeshConfig:
    """ "fsdp=8,tensor=2" -> MeshConfig; axes that are not named are 1. Raises UserError for anything else."""
    sizes: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, size = part.partition("=")
        if name not in USER_AXES or not size.isdecimal() or name in sizes:
            raise UserError(
                f"mesh {text!r}: {part!r} is not AXIS=NUMBER with an axis of {', '.join(USER_AXES)}, each at most once"
            )
        sizes[name] = int(size)
    return MeshConfig(**sizes, slices=slices)


def mesh_from_config(section: Section, model: TransformerConfig) -> tuple[Mesh, "ShardingRules"]:
    """The mesh and the rules of a config file's `mesh` section: {"shape", "slices", "rules"}.

    An empty shape is fsdp over all devices. Raises UserError as `device_mesh` and `rules_named` do.
    """
    shape = section["shape"] or f"fsdp={jax.device_count()}"
    return device_mesh(parse_mesh(shape, section["slices"]), model), rules_named(section["rules"])


def device_mesh(
    config: MeshConfig, model: TransformerConfig | None = None, devices: Sequence[Any] | None = None
) -> Mesh:
    """The mesh of the axes `MESH_AXES`.

    Where the width of the model is not divisible by fsdp, fsdp is split: the part that divides it splits the kernels'
    rows, and the rest, "fsdp_inner", their columns. So fsdp=256 works for a width of 2080 = 32 x 65, as 32 x 8.

    Args:
      model: what will be trained; None does not split fsdp.
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
    outer = config.fsdp if model is None else math.gcd(config.fsdp, model.width, model.text_channels)
    inner = config.fsdp // outer
    if model is not None:
        _check_model(config, inner, model)
    shape = (config.data, outer, inner, config.tensor, config.sequence)
    if config.slices > 1:
        within = (config.data // config.slices, *shape[1:])
        between = (config.slices, *[1] * (len(shape) - 1))
        arranged = mesh_utils.create_hybrid_device_mesh(
            within, between, devices, allow_split_physical_axes=True
        )
    else:
        arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _describe(config: MeshConfig) -> str:
    return ", ".join(f"{axis}={getattr(config, axis)}" for axis in USER_AXES)


def _check_model(config: MeshConfig, inner: int, model: TransformerConfig) -> None:
    """Raises UserError where the mesh does not divide the model; the message says what would."""
    needs = {
        "heads": (model.heads, config.tensor, "tensor"),
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


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """The mesh axes over which each logical axis is split; () = whole on every device.

    Logical axes of parameters are described in `model/layers.py`; of activations, `batch` counts pictures and
    `tokens` the visual tokens of one picture.
    """

    batch: Axes = ("data", "fsdp", "fsdp_inner")
    tokens: Axes = ()
    layers: Axes = ()
    embed: Axes = ()
    embed_out: Axes = ()
    heads: Axes = ()
    head_size: Axes = ()
    merged_heads: Axes = ()
    mlp: Axes = ()
    text: Axes = ()
    text_rows: Axes = ()
    scales: Axes = ()
    bits: Axes = ()
    adaln: Axes = ()
    conv_in: Axes = ()
    conv_out: Axes = ()
    vocabulary: Axes = ()
    position_buckets: Axes = ()

    def __post_init__(self):
        for field in dataclasses.fields(self):
            for axis in getattr(self, field.name):
                if axis not in MESH_AXES:
                    raise UserError(
                        f"sharding rule {field.name}: unknown mesh axis {axis!r}; use {', '.join(MESH_AXES)}"
                    )


_FSDP = ShardingRules(
    embed=("fsdp",),
    text=("fsdp",),
    conv_out=("fsdp",),
    embed_out=("fsdp_inner",),
    head_size=("fsdp_inner",),
    merged_heads=("fsdp_inner",),
    mlp=("fsdp_inner",),
)
_TENSOR = dataclasses.replace(
    _FSDP,
    heads=("tensor",),
    embed_out=("tensor", "fsdp_inner"),
    merged_heads=("tensor", "fsdp_inner"),
    mlp=("tensor", "fsdp_inner"),
)
PRESETS: Mapping[str, ShardingRules] = {
    "dp": ShardingRules(),
    "fsdp": _FSDP,
    "fsdp_tp": _TENSOR,
}


def rules_named(name: str) -> ShardingRules:
    """The preset `name`; UserError if there is none."""
    if name not in PRESETS:
        raise UserError(f"unknown sharding rules {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]


def partition_spec(
    name: str, axes: Sequence[str | None], shape: Sequence[int], mesh: AnyMesh, rules: ShardingRules
) -> PartitionSpec:
    """Where each dimension of one array lies.

    A dimension that its mesh axes do not divide stays whole; small arrays may.

    Args:
      name: of the array, for messages.
      axes: the logical axis of each dimension; None stays whole.
      shape: the array's.
    Raises:
      UserError: an unknown logical axis; two dimensions on one mesh axis; a large array that stays whole although
        the rules would split it.
    """
    known = {field.name for field in dataclasses.fields(rules)}
    spec, used = [], set()
    for axis, size in zip(axes, shape, strict=True):
        if axis is not None and axis not in known:
            raise UserError(f"{name}: unknown logical axis {axis!r}; known: {', '.join(sorted(known))}")
        mesh_axes = () if axis is None else getattr(rules, axis)
        mesh_axes = tuple(a for a in mesh_axes if mesh.shape[a] > 1)
        if twice := used & set(mesh_axes):
            raise UserError(
                f"{name} with axes {tuple(axes)}: two of its dimensions are split over mesh axis {sorted(twice)[0]!r}; "
                f"change the rule of {axis!r}"
            )
        used |= set(mesh_axes)
        divides = size % math.prod(mesh.shape[a] for a in mesh_axes) == 0
        spec.append(mesh_axes if mesh_axes and divides else None)
    if used and not any(spec) and math.prod(shape) > LARGE:
        raise UserError(
            f"{name} of shape {tuple(shape)} and axes {tuple(axes)} would lie whole on every device: none of its "
            f"dimensions is divisible by its mesh axes {dict(mesh.shape)}; choose another mesh"
        )
    return PartitionSpec(*(entry[0] if entry and len(entry) == 1 else entry for entry in spec))


def shardings_of(variables: PyTree, mesh: AnyMesh, rules: ShardingRules) -> PyTree:
    """A NamedSharding for every array of a tree whose parameters are boxed with logical axis names.

    Works on shapes (`jax.eval_shape`) as well as on arrays. Arrays without names lie whole on every device.
    """

    def boxed(leaf: Any) -> bool:
        return isinstance(leaf, nn.Partitioned)

    def sharding(path, leaf):
        if not boxed(leaf):
            return NamedSharding(mesh, PartitionSpec())
        value = leaf.value
        return NamedSharding(mesh, partition_spec(parameter_name(path), leaf.names, value.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(sharding, variables, is_leaf=boxed)


def state_shardings(
    state: TrainState, params: PyTree, optimiser: optax.GradientTransformation, mesh: AnyMesh
) -> TrainState:
    """A NamedSharding for every array of a train state: its average and the optimiser's moments follow the parameters.

    Args:
      state: its shapes.
      params: the parameters' shardings.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    opt_state = optax.tree_map_params(
        optimiser,
        lambda _, sharding: sharding,
        state.opt_state,
        params,
        transform_non_params=lambda _: whole,
    )
    return TrainState(whole, params, opt_state, None if state.ema_params is None else params)


def batch_sharding(mesh: AnyMesh, rules: ShardingRules, batch_size: int) -> NamedSharding:
    """Where the first axis of a batch's arrays lies; the others are whole.

    Raises:
      UserError: the batch cannot be shared evenly.
    """
    parts = math.prod(mesh.shape[axis] for axis in rules.batch)
    if batch_size % parts:
        raise UserError(
            f"batch_size {batch_size} is not divisible by the {parts} devices of the mesh's data and fsdp axes; "
            f"nearest: {max(1, batch_size // parts) * parts}, {(batch_size // parts + 1) * parts}"
        )
    return NamedSharding(mesh, PartitionSpec(rules.batch))


def describe(shardings: PyTree, shapes: PyTree) -> dict[str, dict[str, Any]]:
    """Name -> {"shape", "dtype", "spec"} of every array, as plain values for a file."""
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    specs = jax.tree.leaves(shardings)
    return {
        parameter_name(path): {
            "shape": list(leaf.shape),
            "dtype": np.dtype(leaf.dtype).name,
            "spec": [list(entry) if isinstance(entry, tuple) else entry for entry in sharding.spec],
        }
        for (path, leaf), sharding in zip(leaves, specs, strict=True)
    }
