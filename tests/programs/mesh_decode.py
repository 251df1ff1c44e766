"""A batch of codes decoded on several meshes of virtual devices: `mesh_decoder.py OUT.npz MESH ...`.

Stores the pictures that are made in strips and picture by picture as MESH/strips and MESH/pictures, those of one device
as `plain`, and what each device of a mesh receives as MESH/strips/collective_bytes; `weights` is the size of all
parameters.
"""

import os
import sys

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.config import TokenizerConfig
from infinity_jax.runtime import sharding
from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.tokenizer import decoder_memory, strips
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.tools.planning import hlo_costs

TOKENIZER = Tokenizer(
    TokenizerConfig(bits=8, base_width=32, multipliers=(1, 2), encoder_blocks=1, decoder_blocks=1)
)


def decode(params, codes_BHWd):
    return TOKENIZER.apply({"params": params}, codes_BHWd, method="decode")


def main(out: str, meshes: list[str]) -> None:
    codes = jax.random.rademacher(jax.random.key(0), (16, 4, 6, 8), jnp.float32)
    boxed = TOKENIZER.init(jax.random.key(1), codes[:1], method="decode")["params"]
    params = nn.meta.unbox(boxed)
    pictures = {"plain": jax.jit(decode)(params, codes)}
    for shape in meshes:
        config = parse_mesh(shape)
        layout = sharding.layout_of(config, devices=jax.devices()[: config.devices])
        arguments = jax.device_put(params, layout.of(boxed)), jax.device_put(codes, layout.batch(len(codes)))
        for form, most in {
            "strips": 0,
            "pictures": strips.largest_map(TOKENIZER.config, (4, 6), "float32"),
        }.items():
            decoder_memory.CPU = decoder_memory.Memory(plain=most, held=2**16, strip=2**12)
            # A new function, so that it is traced with this memory.
            run = jax.jit(layout.traced(lambda *args: decode(*args)), out_shardings=layout.batch(len(codes)))
            program = run.lower(*arguments).compile()
            counted = hlo_costs.costs(program.as_text() or "")
            pictures[f"{shape}/{form}/collective_bytes"] = np.asarray(sum(counted.collectives.values()))
            pictures[f"{shape}/{form}"] = program(*arguments)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    np.savez(out, **pictures, weights=weights)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
