"""The kernel that draws bits, compiled ahead of time for a TPU topology: `bits_on_tpu.py TOPOLOGY`.

Prints a line of JSON for each case: its name, whether the kernel is in the program, and whether the program computes
an array of the size of the logits or the hidden states.
"""

import json
import math
import os
import re
import sys

from infinity_jax.cli.compile import LIBTPU

if __name__ == "__main__":
    os.environ.update(LIBTPU)

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.runtime.sharding import Layout, layout_of
from infinity_jax.sampling.bits import DrawSettings, LinearHead
from infinity_jax.sampling.head_bits import draw_head_bits

# pictures, tokens, channels, bits: odd sizes, a first scale, the last scale of 1024x1024, wide.
SIZES = ((8, 46, 200, 12), (8, 1, 768, 32), (8, 4096, 1920, 32), (8, 256, 4608, 128))
# rows of a picture, type of the hidden states, type of the product's operands
KINDS = ((1, "float32", "float32"), (2, "float32", "bfloat16"), (2, "bfloat16", "bfloat16"))


def compile_case(layout: Layout, size: tuple[int, ...], rows_of_picture: int, hidden_type: str, dtype: str):
    """The compiled draw of one scale on all devices of the layout."""
    batch, tokens, width, d = size
    split = PartitionSpec(layout.rules.batch)

    def shape(sizes: tuple[int, ...], dtype="float32", spec: PartitionSpec = PartitionSpec()):  # noqa: B008
        return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype), sharding=NamedSharding(layout.mesh, spec))

    def draw(hidden_BGNC, modulation, weight, bias, cfg_B, seeds_B, tau_B, top_p_B):
        head = LinearHead(modulation, weight, bias)
        return draw_head_bits(
            hidden_BGNC.swapaxes(0, 1), head, cfg_B, DrawSettings(seeds_B, tau_B, top_p_B, 3)
        )

    hidden_spec = PartitionSpec(*split, None, layout.rules.tokens) if tokens > 1 else split
    hidden = shape((batch, rows_of_picture, tokens, width), hidden_type, hidden_spec)
    head = shape((batch, rows_of_picture, 2, width), spec=split), shape((width, d), dtype), shape((d,))
    seeds, number = shape((batch,), "uint32", split), shape((batch,), spec=split)
    return jax.jit(layout.traced(draw)).lower(hidden, *head, number, seeds, number, number).compile()


def computed_sizes(program: str) -> set[int]:
    """How many elements the floating-point arrays have that a compiled program computes or copies."""
    results = re.findall(r"= (?:f32|bf16)\[([\d,]+)\]\S* (?!parameter|bitcast)", program)
    return {math.prod(map(int, shape.split(","))) for shape in results}


def main(topology: str) -> None:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    for mesh in ("data=4", "data=2,sequence=2"):
        layout = layout_of(parse_mesh(mesh), devices=devices)
        for size in SIZES:
            batch, tokens, width, d = size
            rows = batch * tokens // len(devices)
            for kind in KINDS:
                program = compile_case(layout, size, *kind).as_text() or ""
                # XLA gives a program's argument of few tokens another layout than the kernel reads.
                sizes = {d, 2 * d, 4 * d} | ({width, 2 * width} if tokens >= 256 else set())
                large = {rows * n for n in sizes} if tokens > 1 else set()
                case = {
                    "name": f"{mesh} {size} {kind}",
                    "kernel": "draw_bits_tpu" in program,
                    "large": sorted(large & computed_sizes(program)),
                }
                print(json.dumps(case), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
