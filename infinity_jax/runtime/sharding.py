"""Which device holds what: one dataclass of rules from logical to mesh axes, and strict checks.

Every parameter names its dimensions ("embed", "mlp", ...: see `transformer/layers.py`). `ShardingRules` says over which
mesh axes each name is split; nothing else in the package knows about devices.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from infinity_jax.config import TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.fields import Checked, OneOf, Range, Unlimited
from infinity_jax.runtime.mesh import MESH_AXES, USER_AXES, MeshConfig, device_mesh, parse_mesh
from infinity_jax.runtime.trees import parameter_name

LARGE = 2**20  # Elements: a larger parameter must not be left whole on every device.

Axes = tuple[str, ...]
AnyMesh = Mesh | AbstractMesh  # of devices, or only of their number


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """The mesh axes over which each logical axis is split; () = whole on every device.

    Logical axes of parameters are described in `transformer/layers.py`. Activations have these too, and their own:
    `batch` counts pictures, `tokens` the visual tokens of one picture, `attention_heads` the heads while tokens look
    at each other, for which each device needs all tokens of its heads.
    """

    batch: Axes = ("data", "fsdp", "fsdp_inner")
    tokens: Axes = ()
    attention_heads: Axes = ()
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
    indices: Axes = ()
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
    indices=("fsdp_inner",),
)
_TENSOR = dataclasses.replace(
    _FSDP,
    heads=("tensor",),
    attention_heads=("tensor",),
    embed_out=("tensor", "fsdp_inner"),
    merged_heads=("tensor", "fsdp_inner"),
    mlp=("tensor", "fsdp_inner"),
    indices=("tensor", "fsdp_inner"),
)
PRESETS: Mapping[str, ShardingRules] = {
    "dp": ShardingRules(),
    "fsdp": _FSDP,
    "fsdp_tp": _TENSOR,
    "fsdp_tp_sp": dataclasses.replace(_TENSOR, tokens=("sequence",), attention_heads=("tensor", "sequence")),
}


def rules_named(name: str) -> ShardingRules:
    """Finds the preset `name`; UserError if there is none."""
    if name not in PRESETS:
        raise UserError(f"unknown sharding rules {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclasses.dataclass(frozen=True)
class MeshSection(Checked):
    """The section `mesh` of a config file.

    Attributes:
      shape: like "fsdp=8,tensor=2"; "" is fsdp over all devices.
      slices: see `MeshConfig`.
      rules: name of a preset of `ShardingRules`; "" is the least that uses all axes of the mesh.
    """

    shape: Annotated[str, Unlimited("AXIS=N,..., or nothing")] = ""
    slices: Annotated[int, Range(1, 2**16)] = 1
    rules: Annotated[str, OneOf(("", *PRESETS))] = ""


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh, and the rules of what lies where on it.

    Attributes:
      mesh: of devices, or (to look at specs) only of their number.
      rules: from logical to mesh axes.
    """

    mesh: AnyMesh
    rules: ShardingRules

    @property
    def replicated(self) -> NamedSharding:
        """Returns the sharding that puts the whole array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch_parts(self) -> int:
        """Counts the parts into which a batch is split."""
        return math.prod(self.mesh.shape[axis] for axis in self.rules.batch)

    def batch(self, batch_size: int, microbatches: int = 1) -> NamedSharding:
        """Splits the first axis of a batch's arrays over the devices; UserError if a microbatch cannot be."""
        least = self.batch_parts * microbatches
        if batch_size % least:
            near = sorted({max(1, batch_size // least) * least, (batch_size // least + 1) * least})
            raise UserError(
                f"batch_size {batch_size} is not divisible by {least}: {self.batch_parts} devices of the mesh's data "
                f"and fsdp axes, times {microbatches} microbatches; nearest: {', '.join(map(str, near))}"
            )
        return NamedSharding(self.mesh, PartitionSpec(self.rules.batch))

    def of(self, variables: PyTree) -> PyTree:
        """Makes a NamedSharding for every array of a tree whose parameters are boxed with logical axis names.

        Works on shapes (`jax.eval_shape`) as well as on arrays. Arrays without names lie whole on every device.
        """

        def sharding(path: jax.tree_util.KeyPath, leaf: Any) -> NamedSharding:
            if not isinstance(leaf, nn.Partitioned):
                return self.replicated
            shape, name = leaf.value.shape, parameter_name(path)
            return NamedSharding(self.mesh, partition_spec(name, leaf.names, shape, self.mesh, self.rules))

        return jax.tree_util.tree_map_with_path(
            sharding, variables, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)
        )

    def traced(self, function: Callable) -> Callable:
        """Wraps `function`, to be jitted: the activations that it names (`constrain`) are held on this mesh."""
        return tracing(self)(function)


traced_layout: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


@contextlib.contextmanager
def tracing(layout: Layout | None) -> Iterator[None]:
    """Traces what is in the block for a layout; None: for one device, outside of any mesh."""
    token = traced_layout.set(layout)
    try:
        yield
    finally:
        traced_layout.reset(token)


def on_mesh() -> bool:
    """Tells whether what is traced now will run on several devices (`Layout.traced`)."""
    layout = traced_layout.get()
    return layout is not None and layout.mesh.size > 1


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Tells where x lies: without it the compiler may follow the parameters and copy whole batches.

    Does nothing outside `Layout.traced`. A mesh axis that an earlier dimension uses is not used again; a dimension
    that does not divide stays as the compiler likes, only `tokens` may be split unevenly.

    Args:
      axes: the logical axis of each dimension; None stays whole.
    """
    layout = traced_layout.get()
    if layout is None or not on_mesh():
        return x
    spec, used = [], set()
    for axis, size in zip(axes, x.shape, strict=True):
        if axis is None:
            spec.append(None)
            continue
        mesh_axes = [a for a in getattr(layout.rules, axis) if layout.mesh.shape[a] > 1 and a not in used]
        if axis != "tokens" and size % math.prod(layout.mesh.shape[a] for a in mesh_axes):
            spec.append(PartitionSpec.UNCONSTRAINED)
            continue
        used |= set(mesh_axes)
        spec.append(tuple(mesh_axes) or None)
    return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, PartitionSpec(*spec)))


def put(array: Any, sharding: NamedSharding) -> jax.Array:
    """Lays an array that every process has whole out over the devices; one that lies so already is not moved."""
    if isinstance(array, jax.Array) and array.sharding == sharding:
        return array
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def least_rules(mesh: MeshConfig) -> str:
    """Chooses the least preset of rules that makes use of all axes of a mesh."""
    if mesh.sequence > 1:
        return "fsdp_tp_sp"
    if mesh.tensor > 1:
        return "fsdp_tp"
    return "fsdp" if mesh.fsdp > 1 else "dp"


def layout_of(
    config: MeshConfig,
    rules: str = "",
    model: TransformerConfig | None = None,
    devices: Sequence[Any] | None = None,
) -> Layout:
    """Makes the layout of a mesh and a preset of rules ("": the least); arguments and errors as of `device_mesh`.

    Raises:
      UserError: the rules do not exist, or leave an axis of the mesh unused, so that its devices would do the same.
    """
    least = least_rules(config)
    chosen = rules_named(rules or least)
    used = {axis for field in dataclasses.fields(chosen) for axis in getattr(chosen, field.name)}
    if idle := [axis for axis in USER_AXES if getattr(config, axis) > 1 and axis not in used]:
        raise UserError(
            f'the sharding rules {rules!r} do not use the mesh\'s axis {idle[0]!r}; take {least!r} or ""'
        )
    return Layout(device_mesh(config, model, devices), chosen)


def layout_from_config(
    chosen: MeshSection, model: TransformerConfig | None = None, devices: Sequence[Any] | None = None
) -> Layout:
    """Makes the layout of a config file's section `mesh`, for all devices; UserError as `layout_of` raises it."""
    shape = chosen.shape or f"fsdp={len(devices or jax.devices())}"
    return layout_of(parse_mesh(shape, chosen.slices), chosen.rules, model, devices)


def partition_spec(
    name: str, axes: Sequence[str | None], shape: Sequence[int], mesh: AnyMesh, rules: ShardingRules
) -> PartitionSpec:
    """Decides where each dimension of one array lies.

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
