"""What a cell will need before it runs: parameters, tokens, FLOP, memory and time."""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

from infinity_jax import scales
from infinity_jax.config import TransformerConfig
from infinity_jax.config_files import from_dict
from infinity_jax.data import sources
from infinity_jax.errors import UserError
from infinity_jax.runtime.chips import CHIPS
from infinity_jax.runtime.devices import main_memory
from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.tools.planning import memory
from infinity_jax.tools.scaling.grid import Cell, Hardware
from infinity_jax.training import flops
from infinity_jax.training.config import TrainConfig, from_section
from infinity_jax.training.optim import OptimConfig

_SIDE = 2048  # of the product that this machine's rate is measured with


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A cell in numbers.

    Attributes:
      cell: which.
      trains: whether it trains, or only draws with a checkpoint; then there is nothing to estimate.
      model, train: its configs.
      parameters: of the transformer.
      pictures, tokens: seen in the whole training, repetitions counted.
      flops: of the whole training, by formula (`flops.train_flops`).
      memory: bytes on each device; None where there is no formula for the mesh, the head or the remat policy.
      seconds: of the training, at the hardware's peak times its utilisation.
      available: bytes that each device has.
    """

    cell: Cell
    trains: bool
    model: TransformerConfig
    train: TrainConfig
    parameters: int
    pictures: int
    tokens: int
    flops: int
    memory: int | None
    seconds: float
    available: int

    @property
    def fits(self) -> bool:
        """Tells whether the memory that is known of is there."""
        return self.memory is None or self.memory <= self.available

    def row(self) -> dict[str, Any]:
        """Fills the columns of the table of runs that are known before the run."""
        optim = self.cell.config.optim
        status = "planned" if self.fits else "does not fit"
        known = {"name": self.cell.name, "status": status, **self.cell.labels, "seed": self.train.seed}
        if not self.trains:
            return known
        # Losses of different bits are of different tokens: `scaling` fits each vocabulary by itself.
        return (
            {"vocabulary": f"d{self.model.bits}"}
            | known
            | {
                "parameters": self.parameters,
                **{name: getattr(self.model, name) for name in ("layers", "width", "heads", "bits")},
                "batch_size": self.train.batch_size,
                "steps": self.train.steps,
                "pictures": self.pictures,
                "tokens": self.tokens,
                "flop": self.flops,
                "learning_rate": optim.learning_rate,
                "rate_schedule": optim.schedule,
                "memory": self.memory,
                "estimated_seconds": round(self.seconds, 1),
            }
        )


def estimate(cell: Cell, hardware: Hardware, trains: bool = True) -> Estimate:
    """Estimates what a cell needs on the given hardware; UserError names the cell where its config has a mistake."""
    config, needed = cell.config, None
    text = config.text.max_length
    try:
        model = from_dict(TransformerConfig, config.model, "model")
        # The data set is opened only where steps are counted in epochs.
        epochs = any("epoch" in str(value) for value in config.train.values())
        examples = len(sources.open_source(config.data.source, "train")) if epochs else 0
        train = from_section(config.train, examples)
        schedule = scales.make_schedule(config.data.scales)
        if trains:
            mesh = parse_mesh(config.mesh.shape or f"fsdp={hardware.count}", config.mesh.slices)
            if memory.has_formula(model, mesh):
                batch, parts = train.batch_size, train.microbatches
                needed = memory.train_memory(
                    model, schedule, text, batch, parts, mesh, from_dict(OptimConfig, config.optim, "optim")
                ).total
    except UserError as error:
        raise UserError(f"cell {cell.name}: {error}") from error
    pictures = train.steps * train.batch_size if trains else 0
    total = pictures * flops.train_flops(model, schedule, text)
    return Estimate(
        cell,
        trains,
        model,
        train,
        flops.parameter_count(model),
        pictures,
        pictures * schedule.length,
        total,
        needed,
        total / (_peak(hardware) * hardware.count * hardware.utilisation),
        CHIPS[hardware.chip].memory if hardware.chip else main_memory(),
    )


def _peak(hardware: Hardware) -> float:
    """Finds the FLOP a second of one device."""
    if not hardware.chip:
        return _measured_rate()
    if hardware.chip not in CHIPS:
        raise UserError(f"unknown hardware.chip {hardware.chip!r}; known: {', '.join(CHIPS)}")
    return CHIPS[hardware.chip].peak_flops


@functools.cache
def _measured_rate() -> float:
    """Measures the FLOP a second of a product of bfloat16 matrices with sums in float32, the best of five."""
    multiply = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
    matrix = jnp.ones((_SIDE, _SIDE), "bfloat16")
    best = float("inf")
    for _ in range(6):  # the first one compiles
        started = time.perf_counter()
        jax.block_until_ready(multiply(matrix, matrix))
        best = min(best, time.perf_counter() - started)
    return 2 * _SIDE**3 / best
