"""The devices that a program is compiled for, described by a name."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from infinity_jax.errors import UserError
from infinity_jax.runtime.chips import CHIPS, Chip
from infinity_jax.runtime.devices import main_memory

INSTALL = "pip install 'infinity-jax[tpu]' (or 'jax[tpu]' of the same version as jax)"


@dataclasses.dataclass(frozen=True)
class Target:
    """What is compiled for.

    Attributes:
      devices: of jax; of a topology they exist only as a description.
      memory: bytes of one device.
      chip: its rates; None for virtual devices of a CPU, where a time would say nothing.
    """

    devices: Sequence[Any]
    memory: int
    chip: Chip | None


# A topology's text is libtpu's own name of it, so it is handed on as it is.
def find_target(topology: str, slices: int = 1) -> Target:
    """Finds the devices that a name describes; UserError if there are none, or libtpu is not installed."""
    name, _, shape = topology.partition(":")
    if name == "cpu":
        count = int(shape) if shape.isdecimal() else 0
        devices = jax.devices("cpu")
        if slices > 1:
            raise UserError(
                f"{slices} slices of {topology!r}: only a TPU topology can have several; use --slices 1"
            )
        if not 1 <= count <= len(devices):
            raise UserError(
                f"topology {topology!r}: this process has {len(devices)} virtual CPU devices; write cpu:NUMBER, and "
                "outside the command line set XLA_FLAGS=--xla_force_host_platform_device_count=NUMBER before jax starts"
            )
        return Target(devices[:count], main_memory() // count, None)
    chip = CHIPS.get(name)
    if chip is None or chip.topology_options is None:
        known = ", ".join(name for name, chip in CHIPS.items() if chip.topology_options is not None)
        raise UserError(f"unknown topology {topology!r}; use cpu:8 or CHIP:SHAPE with a chip of {known}")
    options: dict[str, Any] = dict(chip.topology_options) | ({"num_slices": slices} if slices > 1 else {})
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except jax.errors.JaxRuntimeError as error:
        hint = "then try again" if "lockfile" in str(error) else "use a shape like v5e:4x4 or v5p:2x2x1"
        raise UserError(f"topology {topology!r}: {error}; {hint}") from error
    except (RuntimeError, ImportError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"topology {topology!r} needs libtpu, which is not found ({error}); {INSTALL}"
        ) from error
    return Target(described.devices, chip.memory, chip)
