"""Which device holds what: one dataclass of rules from logical to mesh axes, and strict checks.

Every parameter names its dimensions ("embed", "mlp", ...: see `model/layers.py`). `ShardingRules` says over which
mesh axes each name is split; nothing else in the package knows about devices.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from infinity_jax.config import Section, TransformerConfig, from_dict
from infinity_jax.errors import UserError
from infinity_jax.mesh import MESH_AXES, device_mesh, parse_mesh
from infinity_jax.optim import parameter_name
from infinity_jax.train_state import TrainState

LARGE = 2**20  # Elements: a larger parameter must not be left whole on every device.

Axes = tuple[str, ...]
AnyMesh = Mesh | AbstractMesh  # of devices, or only of their number


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


@dataclasses.dataclass(frozen=True)
class MeshSection:
    """The section `mesh` of a config file.

    Attributes:
      shape: like "fsdp=8,tensor=2"; "" is fsdp over all devices.
      slices: see `MeshConfig`.
      rules: name of a preset of `ShardingRules`.
    """

    shape: str = ""
    slices: int = 1
    rules: str = "fsdp"


def mesh_from_config(section: Section, model: TransformerConfig) -> tuple[Mesh, ShardingRules]:
    """The mesh and the rules of a config file's section; UserError as `device_mesh` and `rules_named` raise it."""
    chosen = from_dict(MeshSection, section, "mesh")
    shape = chosen.shape or f"fsdp={jax.device_count()}"
    return device_mesh(parse_mesh(shape, chosen.slices), model), rules_named(chosen.rules)


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
