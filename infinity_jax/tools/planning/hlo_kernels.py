"""What Pallas kernels for TPUs cost: in a compiled program they are opaque calls, at most with an estimate."""

import re

from absl import logging

from infinity_jax.tools.planning.hlo_text import Computation, Instruction, size_in_bytes

TARGET = 'custom_call_target="tpu_custom_call"'
_ESTIMATE = re.compile(r'"cost_estimate":\{"flops":"(\d+)".*?"bytes_accessed":"(\d+)"')
# Splash attention gives no estimate, so `attention_splash.py` writes what a product costs into the name of its scope.
# Forward it has two products; backward it computes one of them again and has four more.
_SPLASH = re.compile(r"products_of_(\d+)_and_(\d+)_flop_(\d+)_bytes.*/splash_mha_(fwd|dkv)")
_PRODUCTS = {"fwd": 2, "dkv": 5}


def kernel_costs(instruction: Instruction, computation: Computation) -> tuple[float, float]:
    """FLOP, and bytes of main memory read and written, of a call of a kernel; of other calls (0, 0)."""
    if TARGET not in instruction.attributes:
        return 0.0, 0.0
    if estimate := _ESTIMATE.search(instruction.attributes):
        return float(estimate[1]), float(estimate[2])
    types = [computation.instructions[name].type for name in instruction.operands]
    once = float(sum(size_in_bytes(text, True) for text in (instruction.type, *types)))
    if splash := _SPLASH.search(instruction.attributes):
        kind, product = splash[4], int(splash[1 if splash[4] == "fwd" else 2])
        return float(_PRODUCTS[kind] * product), once + int(splash[3])
    logging.warning(
        "%s: this kernel has no estimate of its costs; only its arrays are counted", instruction.name
    )
    return 0.0, once
