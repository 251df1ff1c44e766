"""Attention by scale against attention with a mask over all tokens: time and memory on this machine.

    python benchmarks/attention.py --json attention.json

The masked form is what one would write: scores of all tokens with all, a block-causal mask, softmax, in two ways:
"softmax" with `jax.nn.softmax`, "jax.nn" with `jax.nn.dot_product_attention`. The quicker of the two is what attention
by scale is compared with. Durations are medians of rounds in which every form ran once; ratios are medians over rounds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from infinity_jax.runtime.start_up import keep_freed_memory

keep_freed_memory()

import jax
import jax.numpy as jnp
import numpy as np
from machine import matmul_flops_per_second

from infinity_jax import scales
from infinity_jax.training import flops
from infinity_jax.transformer.attention import block_causal_attention, block_causal_mask

OURS, MASKED = "by scale", ("softmax", "jax.nn")


def forms(schedule: scales.ScaleSchedule, dtype: str) -> dict[str, Callable]:
    """Functions of q, k, v float32 [B, H, L, head] with the same result."""
    mask_LL = jnp.asarray(block_causal_mask(schedule))

    def by_scale(q, k, v):
        return block_causal_attention(q, k, v, schedule, dtype)

    def softmax(q, k, v):
        q, k, v = (x.astype(dtype) for x in (q, k, v))
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(jnp.where(mask_LL, scores, -jnp.inf))
        return jnp.einsum("bhqk,bhkd->bhqd", weights.astype(dtype), v, preferred_element_type=jnp.float32)

    def of_jax(q, k, v):
        q, k, v = (x.astype(dtype).swapaxes(1, 2) for x in (q, k, v))
        out = jax.nn.dot_product_attention(q, k, v, mask=mask_LL[None, None], scale=1.0)
        return out.swapaxes(1, 2).astype(jnp.float32)

    return dict(zip((OURS, *MASKED), (by_scale, softmax, of_jax), strict=True))


def programs(function: Callable, arrays: list[jax.Array]) -> dict[str, Any]:
    """Compiled: the forward pass, and the forward and backward pass together."""

    def both(q, k, v, dout):
        out, pull_back = jax.vjp(function, q, k, v)
        return out, pull_back(dout)

    return {
        "forward": jax.jit(function).lower(*arrays[:3]).compile(),
        "forward and backward": jax.jit(both).lower(*arrays).compile(),
    }


def measure(budget: str, heads: int, head: int, batch: int, dtype: str, rounds: int) -> dict[str, Any]:
    """Seconds, ratios and memory of all forms with operands of one type."""
    schedule = scales.make_schedule(budget)
    random = np.random.default_rng(0)
    shape = (batch, heads, schedule.length, head)
    q, k, v, dout = (jnp.asarray(random.standard_normal(shape), jnp.float32) for _ in range(4))
    q, k = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    arrays = [4 * q, k, v, dout]
    compiled = {name: programs(form, arrays) for name, form in forms(schedule, dtype).items()}
    report: dict[str, Any] = {"dtype": dtype}
    for direction, count, products in (("forward", 3, 2), ("forward and backward", 4, 6)):
        seconds: dict[str, list[float]] = {name: [] for name in compiled}
        for number in range(rounds + 1):  # the first does not count
            for name, program in compiled.items():
                started = time.perf_counter()
                jax.block_until_ready(program[direction](*arrays[:count]))
                if number:
                    seconds[name].append(time.perf_counter() - started)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        masked = min(MASKED, key=medians.__getitem__)
        memory = {name: program[direction].memory_analysis() for name, program in compiled.items()}
        work = batch * products * 2 * heads * head * flops.visible_pairs(schedule)
        report[direction] = {
            "seconds": medians,
            "opponent": masked,
            "times_faster": statistics.median(
                other / ours for other, ours in zip(seconds[masked], seconds[OURS], strict=True)
            ),
            # Arguments and results too, which are the same for all.
            "peak_bytes": {
                name: used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes
                for name, used in memory.items()
            },
            "flops_per_second": work / medians[OURS],
        }
    return report


def main() -> None:
    """Prints the table and writes its numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", default="0.25M", help="of the scale schedule; default 0.25M, 2521 tokens")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the numbers are written")
    arguments = parser.parse_args()
    shape = (arguments.budget, arguments.heads, arguments.head_size, arguments.batch)
    report = {
        "tokens": scales.make_schedule(arguments.budget).length,
        "heads": arguments.heads,
        "head_size": arguments.head_size,
        "batch": arguments.batch,
        "backend": jax.default_backend(),
        "matmul_flops_per_second": {t: matmul_flops_per_second(t) for t in ("float32", "bfloat16")},
        "results": [measure(*shape, dtype, arguments.rounds) for dtype in ("float32", "bfloat16")],
    }
    rates = ", ".join(f"{t} {r / 1e9:.0f}" for t, r in report["matmul_flops_per_second"].items())
    print(
        f"{report['tokens']} tokens, {arguments.heads} heads of {arguments.head_size}, batch {arguments.batch};"
    )
    print(f"large products here, GFLOP/s: {rates}")
    print(
        f"{'operands':9} {'':21} {'by scale':>10} {'masked':>10} {'ratio':>6} {'GFLOP/s':>8} {'peak MiB':>16}"
    )
    for result in report["results"]:
        for direction in ("forward", "forward and backward"):
            row = result[direction]
            ours, masked = (row["seconds"][name] * 1e3 for name in (OURS, row["opponent"]))
            used = " : ".join(f"{row['peak_bytes'][name] / 2**20:.0f}" for name in (OURS, row["opponent"]))
            print(
                f"{result['dtype']:9} {direction:21} {ours:7.0f} ms {masked:7.0f} ms {row['times_faster']:6.2f} "
                f"{row['flops_per_second'] / 1e9:8.0f} {used:>16}"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
