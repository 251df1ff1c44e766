"""Is one kernel from the last block's output to bits worth it? `python benchmarks/bit_sampling.py --json FILE`

Four forms of the last step of a scale, with guidance; each begins with the head's norm:
  unfused     two logits a bit for both rows, then guidance, temperature, draw
  difference  guidance on what the head's linear map reads, one column a bit, draw: plain jax
  after norm  the norm in plain jax, the rest in one kernel: only counted, since we have no such kernel
  fused       all in one kernel
A kernel is timed on TPU and GPU only; elsewhere it would be interpreted.

FLOP and bytes are counted by formula: what a product or kernel reads and writes, once, with element-wise steps and the
norm in what precedes or follows. From them and the peak rates of accelerators come lower bounds of the time, which are
no measurements. `utilisation` is counted FLOP / measured time over the rate of a large product in the same run, and
`bandwidth_share` counted bytes / measured time over the rate of a large copy: the step is bound by memory.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import machine
import numpy as np

from infinity_jax.runtime.chips import CHIPS
from infinity_jax.runtime.devices import platform
from infinity_jax.runtime.start_up import keep_freed_memory
from infinity_jax.sampling import bits, guidance, head_bits
from infinity_jax.transformer.kernels.matmul import matmul
from infinity_jax.transformer.layers import modulate

WIDTHS = {"125m": 768, "2b": 2048}
TOKENS = {"0.06M": 256, "1M": 4096}  # of the last scale
BITS = 32
ROUNDS = 15
COPIED = 2**26  # float32 numbers


def unfused(x_BGNC, modulation_BG2C, kernel_C2d, cfg_B, seeds_B, tau_B, top_p_B, dtype: str) -> jax.Array:
    """The draw as it follows from the model's definition."""
    normed_BGNC = jax.vmap(modulate)(x_BGNC, modulation_BG2C[..., 0, :], modulation_BG2C[..., 1, :])
    logits = matmul(normed_BGNC, kernel_C2d, dtype)
    logits = logits.reshape(*logits.shape[:-1], -1, 2)
    mixed = guidance.mix(logits[:, 0], logits[:, 1], cfg_B[:, None, None, None])
    return bits.draw_bits(mixed[..., 1] - mixed[..., 0], bits.DrawSettings(seeds_B, tau_B, top_p_B, 0))


def difference(x_BGNC, head, cfg_B, seeds_B, tau_B, top_p_B) -> jax.Array:
    """Half the rows and half the columns."""
    difference_BNd = head_bits.guided_logits(x_BGNC.swapaxes(0, 1), head, cfg_B)
    return bits.draw_bits(difference_BNd, bits.DrawSettings(seeds_B, tau_B, top_p_B, 0))


def fused(x_BGNC, head, cfg_B, seeds_B, tau_B, top_p_B) -> jax.Array:
    """One kernel where there is one."""
    return head_bits.draw_head_bits(
        x_BGNC.swapaxes(0, 1), head, cfg_B, bits.DrawSettings(seeds_B, tau_B, top_p_B, 0)
    )


def counts(batch: int, tokens: int, width: int, dtype: str) -> dict[str, dict[str, int]]:
    """Form -> FLOP of its products, and bytes between memory and chip (the residual stream is float32)."""
    rows, size = batch * tokens, jnp.dtype(dtype).itemsize
    weight, logits, drawn = width * BITS * size, rows * BITS * 4, rows * BITS
    stream, normed = 2 * rows * width * 4, 2 * rows * width * size
    flops = 2 * rows * width * BITS
    # What is written is read again. Unfused, logits are of two classes and two rows of a picture.
    moved = {
        "unfused": stream + 2 * normed + 2 * weight + 2 * 4 * logits + drawn,
        "difference": stream + normed + weight + 2 * logits + drawn,
        "after norm": stream + 2 * normed + weight + drawn,
        "fused": stream + weight + drawn,
    }
    return {
        form: {"flops": flops * (4 if form == "unfused" else 1), "bytes": size}
        for form, size in moved.items()
    }


def seconds(forms: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Form -> median time of a call; the forms take turns, so that a busy machine slows all alike."""
    for form in forms.values():
        jax.block_until_ready(form())
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, form in forms.items():
            start = time.perf_counter()
            jax.block_until_ready(form())
            taken[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in taken.items()}


def copied_bytes_per_second() -> float:
    """Best rate of bytes read and written while a large array is copied."""
    array = jnp.ones(COPIED, jnp.float32)
    negate = jax.jit(jnp.negative)
    return 2 * array.nbytes / min(machine.seconds(lambda: negate(array), 5))


def timed_forms(width: int, tokens: int, batch: int, dtype: str) -> dict[str, Callable[[], Any]]:
    """The forms that run here, on random arrays."""
    rng = np.random.default_rng(0)

    def normal(*shape: int, over: float = 1.0) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape) / over, jnp.float32)

    x_BGNC, modulation_BG2C = normal(batch, 2, tokens, width), normal(batch, 2, 2, width, over=3)
    kernel_C2d = normal(width, 2 * BITS, over=np.sqrt(width))
    weight_Cd = (kernel_C2d[:, 1::2] - kernel_C2d[:, ::2]).astype(dtype)
    head = head_bits.LinearHead(modulation_BG2C, weight_Cd, jnp.zeros(BITS))
    cfg_B, tau_B, top_p_B = (jnp.full(batch, value) for value in (4.0, 1.0, 0.97))
    settings = cfg_B, jnp.arange(batch, dtype=jnp.uint32), tau_B, top_p_B
    two_logits = functools.partial(jax.jit(unfused, static_argnames="dtype"), dtype=dtype)
    forms = {
        "unfused": functools.partial(two_logits, x_BGNC, modulation_BG2C, kernel_C2d, *settings),
        "difference": functools.partial(jax.jit(difference), x_BGNC, head, *settings),
    }
    if platform() in head_bits.KERNELS:
        forms["fused"] = functools.partial(jax.jit(fused), x_BGNC, head, *settings)
    return forms


def measure(size: str, budget: str, batch: int, dtype: str, bandwidth: float) -> dict[str, Any]:
    """Counts, bounds and times of one size; `bandwidth` in bytes a second."""
    width, tokens = WIDTHS[size], TOKENS[budget]
    counted = counts(batch, tokens, width, dtype)
    rate = machine.matmul_flops_per_second(dtype)
    times = seconds(timed_forms(width, tokens, batch, dtype))
    return {
        **{"size": size, "budget": budget, "batch": batch, "tokens": tokens, "width": width, "bits": BITS},
        "dtype": dtype,
        "counts": counted,
        "bounds_seconds": {
            name: {
                form: max(count["flops"] / chip.peak_flops, count["bytes"] / chip.memory_bandwidth)
                for form, count in counted.items()
            }
            for name, chip in CHIPS.items()
        },
        "seconds": times,
        "matmul_flops_per_second": rate,
        "copied_bytes_per_second": bandwidth,
        "utilisation": {form: counted[form]["flops"] / taken / rate for form, taken in times.items()},
        "bandwidth_share": {
            form: counted[form]["bytes"] / taken / bandwidth for form, taken in times.items()
        },
    }


def table(cases: list[dict[str, Any]]) -> str:
    """For people: each form over the unfused one."""
    chips = [chip for chip in ("v5e", "v5p", "v6e", "h100") if chip in CHIPS]
    lines = [
        f"{'size':>5} {'budget':>6} {'dtype':>8}  {'form':<10} {'GFLOP':>7} {'ratio':>5} {'MB':>7} {'ratio':>5} "
        f"{'ms here':>8} {'ratio':>5} {'FLOP/s':>7} {'bytes/s':>7}  least µs on {', '.join(chips)}"
    ]
    for case in cases:
        base, first = case["counts"]["unfused"], case["seconds"]["unfused"]
        for form, count in case["counts"].items():
            here = f"{'-':>8} {'-':>5} {'-':>7} {'-':>7}"
            if taken := case["seconds"].get(form):
                shares = f"{case['utilisation'][form]:7.1%} {case['bandwidth_share'][form]:7.1%}"
                here = f"{1e3 * taken:8.2f} {taken / first:5.2f} {shares}"
            least = " ".join(f"{1e6 * case['bounds_seconds'][chip][form]:7.1f}" for chip in chips)
            lines.append(
                f"{case['size']:>5} {case['budget']:>6} {case['dtype']:>8}  {form:<10} {count['flops'] / 1e9:7.3f} "
                f"{count['flops'] / base['flops']:5.2f} {count['bytes'] / 1e6:7.2f} "
                f"{count['bytes'] / base['bytes']:5.2f} {here}  {least}"
            )
    return "\n".join(
        [*lines, "FLOP/s and bytes/s: share of a large product's and of a large copy's in this run"]
    )


def main() -> None:
    """Prints the table and writes all numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=1, help="pictures (default 1)")
    parser.add_argument("--json", metavar="FILE", help="where the numbers go as well")
    arguments = parser.parse_args()
    keep_freed_memory()
    bandwidth = copied_bytes_per_second()
    cases = [
        measure(size, budget, arguments.batch, dtype, bandwidth)
        for size in WIDTHS
        for budget in TOKENS
        for dtype in ("float32", "bfloat16")
    ]
    device = jax.devices()[0]
    print(f"on {device.platform} ({device.device_kind})\n{table(cases)}")
    if arguments.json:
        report = {"platform": device.platform, "device": device.device_kind, "cases": cases}
        Path(arguments.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
