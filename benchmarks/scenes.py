"""How fast scenes are drawn, and their operations beside those of the training steps that see them.

    python benchmarks/scenes.py [--sides 64 128] [--batch 16] [--json FILE]

Operations are those of the traced program: one for each element of each result, loops as often as they run.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import machine  # pyright: ignore[reportMissingImports]

from infinity_jax import config_files, scales
from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.config_files import from_dict
from infinity_jax.data.scenes.description import describe
from infinity_jax.data.scenes.tracer import render
from infinity_jax.training import flops

# They move or name values and compute none.
_FREE = {
    "broadcast_in_dim",
    "reshape",
    "slice",
    "squeeze",
    "concatenate",
    "transpose",
    "convert_element_type",
    "copy",
}
_FREE |= {"iota", "dynamic_slice", "dynamic_update_slice", "gather", "select_n", "stop_gradient"}


def main() -> None:
    """Prints pictures a second and operations for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    numbers = jnp.stack([describe(0, "train", i).numbers() for i in range(arguments.batch)])
    report: dict[str, Any] = {}
    for side in arguments.sides:
        draw = jax.jit(lambda n, side=side: render(n, side, side))
        seconds = statistics.median(machine.seconds(lambda draw=draw: draw(numbers), arguments.repeats))
        traced = jax.make_jaxpr(lambda n, side=side: render(n, side, side))(numbers[:1])
        report[f"pictures_per_second_{side}"] = arguments.batch / seconds
        report[f"gflop_per_picture_{side}"] = operations(traced.jaxpr) / 1e9
    config, tokenizer = config_files.load("scenes"), config_files.load("scenes:tokenizer")
    schedule = scales.make_schedule(config.data.scales)
    model = from_dict(TransformerConfig, config.model, "model")
    of_model = flops.train_flops(model, schedule, config.text.max_length)
    of_tokenizer = flops.tokenizer_train_flops(
        from_dict(TokenizerConfig, tokenizer.model, "model"), schedule.last
    )
    report |= {
        "step_gflop_per_picture": of_model / 1e9,
        "tokenizer_step_gflop_per_picture": of_tokenizer / 1e9,
    }
    for name, value in report.items():
        print(f"{name:>36} {value:10.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))


def operations(jaxpr: Any) -> int:
    """Counts the elements that a program computes."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [x for value in equation.params.values() for x in _jaxprs(value)]
        if inner:  # of the formulas of different solids one runs
            counted = max if equation.primitive.name == "cond" else sum
            total += equation.params.get("length", 1) * counted(operations(x) for x in inner)
        elif equation.primitive.name not in _FREE:
            shape = equation.invars[0].aval.shape if equation.primitive.name.startswith("reduce") else None
            total += math.prod(equation.outvars[0].aval.shape if shape is None else shape)
    return total


def _jaxprs(value: Any) -> list[Any]:
    """Finds the programs within an equation's parameter."""
    if isinstance(value, (list, tuple)):
        return [x for entry in value for x in _jaxprs(entry)]
    value = getattr(value, "jaxpr", value)
    return [value] if hasattr(value, "eqns") else []


if __name__ == "__main__":
    main()
