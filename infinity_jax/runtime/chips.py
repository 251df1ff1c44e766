"""Accelerators, by their makers' public documents.

The rates are peaks that no program reaches; they bound a time from below.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from infinity_jax.runtime.devices import GIB


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as jax counts them, which may be a half of a chip.

    Attributes:
      memory: bytes.
      peak_flops: bfloat16 FLOP a second, dense.
      memory_bandwidth: bytes a second.
      link_bandwidth: bytes a second that it can send to other devices of its slice over all its links together (and
        receive as many at the same time).
      network_bandwidth: bytes a second that it can send to other slices; None where nobody says.
      topology_options: (name, value) that `jax.experimental.topologies` wants besides the topology's name, which is
        "v5e:4x4" or, on chips with links along three axes, "v5p:4x4x8"; None where libtpu does not compile for it.
    """

    memory: int
    peak_flops: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float | None = None
    topology_options: tuple[tuple[str, str], ...] | None = ()


# Google's documents give the interconnect in both directions together; here it is half of that.
CHIPS: Mapping[str, Chip] = MappingProxyType(
    {
        # docs.cloud.google.com/tpu/docs/v4: 275 TFLOP/s, 32 GiB, 1200 GB/s. 6 links of 50 GB/s each way: arXiv
        # 2304.01433, Table 4 (which agrees with that page's 24 TB/s over the 512 links between the halves of a pod).
        # With "megacore" both cores of a chip are one device.
        "v4": Chip(32 * GIB, 275e12, 1200e9, 300e9, topology_options=(("chip_config_name", "megacore"),)),
        # docs.cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB, 819 GB/s, 400 GB/s both ways; 6.4 Tbit/s for a pod
        # of 256 between slices. The compiler offers 15.75 GiB to programs.
        "v5e": Chip(16 * GIB, 197e12, 819e9, 200e9, 3.125e9),
        # docs.cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GiB, 2765 GB/s, 1200 GB/s both ways; 50 Gbit/s between
        # slices.
        "v5p": Chip(95 * GIB, 459e12, 2765e9, 600e9, 6.25e9),
        # docs.cloud.google.com/tpu/docs/v6e and the comparison in .../tpu7x: 918 TFLOP/s, 32 GiB, 1638 GB/s, 800 GB/s
        # both ways; 100 Gbit/s between slices.
        "v6e": Chip(32 * GIB, 918e12, 1638e9, 400e9, 12.5e9),
        # docs.cloud.google.com/tpu/docs/tpu7x: 2307 TFLOP/s, 192 GiB, 7380 GB/s, 1200 GB/s both ways and 100 Gbit/s
        # between slices a chip. jax sees two devices a chip, and each has half.
        "tpu7x": Chip(96 * GIB, 1153.5e12, 3690e9, 300e9, 6.25e9),
        # NVIDIA H100 data sheet, SXM: 989 TFLOP/s without sparsity, 80 GB, 3.35 TB/s, NVLink 900 GB/s both ways.
        "h100": Chip(80 * 10**9, 989e12, 3350e9, 450e9, topology_options=None),
    }
)
# What jax calls a device -> its chip. Others, like an H100 with PCIe, have other rates that nobody looked up.
_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "TPU v4": "v4",
        "TPU v5 lite": "v5e",
        "TPU v5e": "v5e",
        "TPU v5": "v5p",
        "TPU v5p": "v5p",
        "TPU v6 lite": "v6e",
        "TPU v6e": "v6e",
        "TPU7x": "tpu7x",
        "NVIDIA H100 80GB HBM3": "h100",
    }
)


def chip_of(device: Any) -> Chip | None:
    """Finds the chip of a device of jax; None for a CPU and for what is not known, whose rates nobody may make up."""
    return CHIPS.get(_KINDS.get(device.device_kind, ""))
