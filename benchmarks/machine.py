"""What the machine can do, measured in the same run as what is compared with it: the rate of large products.

python benchmarks/machine.py
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

SIDE = 2048


def seconds(function: Callable[[], Any], repeats: int, warm: bool = True) -> list[float]:
    """Duration of each of `repeats` calls, after one that compiles and is not counted (if `warm`)."""
    if warm:
        jax.block_until_ready(function())
    durations = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(function())
        durations.append(time.perf_counter() - started)
    return durations


@functools.cache
def _product(dtype: str, result: str) -> Callable[[], jax.Array]:
    key_a, key_b = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (SIDE, SIDE), dtype) for key in (key_a, key_b))
    multiply = jax.jit(functools.partial(jnp.matmul, preferred_element_type=result))
    return lambda: multiply(a, b)


def matmul_flops_per_second(dtype: str, repeats: int = 5, result: str = "float32") -> float:
    """Best rate of a 2048 x 2048 x 2048 product with operands of "float32" or "bfloat16"."""
    return 2 * SIDE**3 / min(seconds(_product(dtype, result), repeats))


def main() -> None:
    """Prints the rates of both types, and of bfloat16 with a result of its own type."""
    for kinds in (("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")):
        rate = matmul_flops_per_second(kinds[0], result=kinds[1])
        print(f"{kinds[0]:>10} -> {kinds[1]:<10} {rate / 1e9:8.0f} GFLOP/s")


if __name__ == "__main__":
    main()
