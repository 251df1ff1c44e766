"""For which devices a program is traced, and how a kernel is split over those of a mesh."""

import functools
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from infinity_jax.runtime.sharding import Layout, on_mesh, traced_layout

Axes = tuple[str | None, ...]
GIB = 2**30


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu": of the mesh that is traced for (`Layout.traced`), else of this process.

    A choice while tracing, where `jax.lax.platform_dependent` would leave all forms in the program.
    """
    name = _device().platform
    return "gpu" if name in ("cuda", "rocm") else name


def compute_capability() -> str:
    """Returns that of the GPU that is traced for: "9.0" or the like of NVIDIA's, "gfx942" of AMD's, "" of no GPU."""
    return str(getattr(_device(), "compute_capability", ""))


def _device() -> Any:
    layout = traced_layout.get()
    if layout is not None and isinstance(layout.mesh, Mesh):
        return layout.mesh.devices.flat[0]
    return jax.devices()[0]


@functools.cache
def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tells whether this machine's processor multiplies bfloat16; not where the system does not say what it can do.

    Without the instruction XLA makes operands float32 first, and products are no quicker than those of float32.
    """
    try:
        flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    except OSError:  # another system
        return False
    return flags is not None and not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags[1].split())


def main_memory() -> int:
    """Counts the bytes of memory that this process may use: the machine's, or what its control group is given."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        granted = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:  # another system, or no limit
        return available
    return min(available, int(granted)) if granted.isdecimal() else available


def memory_bytes() -> int:
    """Counts the bytes of memory of one of this process's devices; a CPU's is the main memory."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return statistics.get("bytes_limit", main_memory())


def on_each_device(kernel: Callable, in_axes: Sequence[Axes], out_axes: Axes) -> Callable:
    """Makes a kernel, which XLA cannot split by itself, run on each device's part of the arrays.

    Outside a mesh this is the kernel itself. A logical axis that does not divide in one of the arrays stays whole in
    all, so that devices then do the same work.

    Args:
      kernel: function of arrays with one array as its result.
      in_axes: of each array the logical axis (`ShardingRules`) of each dimension; None stays whole.
      out_axes: the same of the result.
    """
    layout = traced_layout.get()
    if layout is None or not on_mesh():
        return kernel

    def split(*arrays: jax.Array) -> jax.Array:
        specs = _specs(layout, in_axes, [x.shape for x in arrays], out_axes)
        return jax.shard_map(
            kernel, mesh=layout.mesh, in_specs=tuple(specs[:-1]), out_specs=specs[-1], check_vma=False
        )(*arrays)

    return split


def _specs(
    layout: Layout, in_axes: Sequence[Axes], shapes: Sequence[tuple[int, ...]], out_axes: Axes
) -> list[PartitionSpec]:
    """Makes the PartitionSpec of each array, and of the result."""
    named = [
        (axis, size)
        for axes, shape in zip(in_axes, shapes, strict=True)
        for axis, size in zip(axes, shape, strict=True)
        if axis is not None
    ]
    mesh_axes = {
        axis: [a for a in getattr(layout.rules, axis) if layout.mesh.shape[a] > 1] for axis, _ in named
    }
    whole = {axis for axis, size in named if size % math.prod(layout.mesh.shape[a] for a in mesh_axes[axis])}

    def spec(axes: Axes) -> PartitionSpec:
        return PartitionSpec(
            *(None if a is None or a in whole else tuple(mesh_axes[a]) or None for a in axes)
        )

    return [spec(axes) for axes in (*in_axes, out_axes)]
