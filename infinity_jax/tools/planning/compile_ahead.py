"""`infinity-jax compile`: a real train step or the sampler, compiled ahead of time for devices that need not be here.

Nothing runs: memory is what the compiler plans, FLOP and collectives are counted in the compiled program
(`hlo_costs.py`), and times are estimates from peak rates (`chips.py`).
"""

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from infinity_jax import config_files
from infinity_jax.errors import UserError
from infinity_jax.files import atomic
from infinity_jax.runtime.chips import Chip
from infinity_jax.runtime.compiled_step import planned_bytes
from infinity_jax.tools.planning import hlo_costs
from infinity_jax.tools.planning.chips import Target, find_target
from infinity_jax.tools.planning.compile_report import in_words
from infinity_jax.tools.planning.lowering import Program
from infinity_jax.tools.planning.requests import Request, plan

# For `--quick`: XLA's level EFFORT_O0, as a number because older jax takes no name; known for every kind of device.
QUICK: Any = {"optimization_level": 9}
# What is reported of a compiled program: the largest over all shapes of pictures, or their mean.
_LARGEST = ("peak_bytes_per_device", "argument_bytes_per_device", "temporary_bytes_per_device")
_MEANS = (
    "compiled_flops",
    "model_flops",
    "memory_traffic_bytes_per_device",
    "collective_bytes",
    "collective_bytes_by_kind",
    "estimated_step_seconds",
    "estimated_bounds_seconds",
)


def main(request: Request, json_file: str) -> bool:
    """Compiles, prints a report and writes it to `json_file`; returns whether it fits into the devices' memory.

    Raises:
      UserError: something of the request is unknown or does not go together, or libtpu is missing.
    """
    r = request
    if r.size is not None and r.budget is None:
        raise UserError(f"--size {r.size} needs a --budget too, the stage of the config; add it, like 0.06M")
    values = config_files.load(f"{r.config}:{r.size},{r.budget}" if r.size else r.config)
    atomic.check_target(Path(json_file), "--json", r.config)
    target = find_target(r.topology, r.slices)
    planned = plan(r, values, target)
    shapes = [
        {"aspect": aspect, "share": share, **compile_and_count(lower(), target, r.quick)}
        for aspect, share, lower in planned.shapes
    ]
    report = {
        "program": planned.program,
        **{name: getattr(r, name) for name in ("size", "budget", "topology", "slices")},
        **planned.about,
        "quick": r.quick,
        "devices": len(target.devices),
        "device_memory_bytes": target.memory,
        **combine(shapes, target),
        "shapes": shapes,
    }
    print(in_words(report))
    atomic.write_json(Path(json_file), report)
    return report["fits"]


def compile_and_count(program: Program, target: Target, quick: bool) -> dict[str, Any]:
    """Compiles one program: memory, FLOP, collectives and estimates; None but for memory where it does not fit."""
    start = time.monotonic()
    try:
        compiled = program.lowered.compile(QUICK if quick else None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _did_not_fit(str(error), program.model_flops, time.monotonic() - start)
    seconds = time.monotonic() - start
    memory: Any = compiled.memory_analysis()
    peak = planned_bytes(compiled)
    counted = hlo_costs.costs(compiled.as_text() or "")
    return {
        "fits": peak <= target.memory,
        "peak_bytes_per_device": peak,
        "argument_bytes_per_device": memory.argument_size_in_bytes,
        "temporary_bytes_per_device": memory.temp_size_in_bytes,
        "compiled_flops": counted.flops * len(target.devices),
        "model_flops": program.model_flops,
        "memory_traffic_bytes_per_device": counted.memory_bytes,
        "collective_bytes": sum(counted.collectives.values()),
        "collective_bytes_by_kind": counted.collectives,
        **estimate(counted, target.chip),
        "compile_seconds": seconds,
    }


def _did_not_fit(message: str, model_flops: int, seconds: float) -> dict[str, Any]:
    """Gives what `compile_and_count` does where the compiler refuses, which may say how much it would have used."""
    used = re.search(r"[Uu]sed ([\d.]+)([KMGT])", message)
    logging.warning("%s", message.split("\n\n")[0])
    return {
        "fits": False,
        **dict.fromkeys((*_LARGEST, *_MEANS)),
        "peak_bytes_per_device": round(float(used[1]) * 1024 ** ("KMGT".index(used[2]) + 1))
        if used
        else None,
        "model_flops": model_flops,
        "compile_seconds": seconds,
    }


def estimate(counted: hlo_costs.Costs, chip: Chip | None) -> dict[str, Any]:
    """Bounds a step's time from below by the chip's peak rates; None for a CPU.

    Products, memory and links are taken to work at the same time, each at its peak; what is slowest decides. Traffic
    with the host's memory (remat "offload") is not counted.
    """
    if chip is None:
        return {"estimated_step_seconds": None, "estimated_bounds_seconds": None}
    between = counted.collectives.get(hlo_costs.BETWEEN_SLICES, 0)
    bounds = {
        "compute": counted.flops / chip.peak_flops,
        "memory": counted.memory_bytes / chip.memory_bandwidth,
        "collectives": (sum(counted.collectives.values()) - between) / chip.link_bandwidth,
    }
    if between and chip.network_bandwidth:
        bounds["between slices"] = between / chip.network_bandwidth
    return {"estimated_step_seconds": max(bounds.values()), "estimated_bounds_seconds": bounds}


def combine(shapes: Sequence[Mapping[str, Any]], target: Target) -> dict[str, Any]:
    """Joins the numbers of several picture shapes: memory is that of the largest, all else the mean by their shares."""
    shares = [shape["share"] / sum(shape["share"] for shape in shapes) for shape in shapes]

    def mean(values: Sequence[Any]) -> Any:
        if any(value is None for value in values):
            return None
        if isinstance(values[0], Mapping):
            keys = sorted({key for value in values for key in value})
            return {key: mean([value.get(key, 0) for value in values]) for key in keys}
        return sum(share * value for share, value in zip(shares, values, strict=True))

    largest = {}
    for key in _LARGEST:
        values = [shape[key] for shape in shapes]
        largest[key] = None if None in values else max(values)
    means = {key: mean([shape[key] for shape in shapes]) for key in _MEANS}
    compiled, model, seconds = (means[k] for k in ("compiled_flops", "model_flops", "estimated_step_seconds"))
    peak_rate = len(target.devices) * target.chip.peak_flops if target.chip else 0.0
    return {
        "fits": all(shape["fits"] for shape in shapes),
        **largest,
        **means,
        "compiled_over_model_flops": None if compiled is None else compiled / model,
        "estimated_mfu": None if seconds is None else model / (peak_rate * seconds),
        "compile_seconds": sum(shape["compile_seconds"] for shape in shapes),
    }
