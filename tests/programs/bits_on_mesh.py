"""The same bits drawn on one device and on meshes of eight virtual ones; fails where one differs.

Plain jax, which XLA splits, and both kernels, interpreted, which `on_each_device` splits.
"""

import functools
import os

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.runtime.sharding import layout_of
from infinity_jax.sampling import head_bits
from infinity_jax.sampling.bits import DrawSettings

MESHES = ("data=2,sequence=4", "fsdp=2,tensor=2,sequence=2")
# pictures, tokens: of these some divide by the devices, some do not.
SIZES = ((8, 16), (6, 9))
WIDTH, BITS = 48, 10


def main() -> None:
    for name, kernel in head_bits.KERNELS.items():
        head_bits.KERNELS[name] = functools.partial(kernel, interpret=True)
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    for batch, tokens in SIZES:
        hidden, seeds = normal(2, batch, tokens, WIDTH), np.arange(batch, dtype=np.uint32)
        head = normal(batch, 2, 2, WIDTH), normal(WIDTH, BITS) / 5, normal(BITS)
        # Each picture has its own.
        numbers = tuple(np.linspace(*ends, batch, dtype=np.float32) for ends in ((1, 4), (0.5, 1), (0.9, 1)))

        def draw(hidden, head, seeds, numbers):
            head, (cfg_B, tau_B, top_p_B) = head_bits.LinearHead(*head), numbers
            return head_bits.draw_head_bits(hidden, head, cfg_B, DrawSettings(seeds, tau_B, top_p_B, 2))

        one = jax.jit(draw)(hidden, head, seeds, numbers)
        for mesh in MESHES:
            layout = layout_of(parse_mesh(mesh))
            axes = layout.rules.batch if batch % layout.batch_parts == 0 else None
            whole, first, second = (
                NamedSharding(layout.mesh, PartitionSpec(*spec)) for spec in ((), (axes,), (None, axes))
            )
            placed = jax.device_put(
                (hidden, head, seeds, numbers), (second, (first, whole, whole), first, first)
            )
            for form in ("cpu", *head_bits.KERNELS):
                head_bits.platform = lambda form=form: form
                # A new function each time: another form is another program.
                split = jax.jit(layout.traced(functools.partial(draw)))(*placed)
                np.testing.assert_array_equal(split, one, f"{mesh} {form}")
            head_bits.platform = lambda: "cpu"


if __name__ == "__main__":
    main()
