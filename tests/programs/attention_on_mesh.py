"""Splash attention, interpreted, split over meshes of eight virtual devices; fails where it is not the masked form.

Self-attention by scale and cross-attention to a text, with lengths and heads of which some do not divide.
"""

import os

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.runtime.sharding import constrain, layout_of
from infinity_jax.scales import make_schedule
from infinity_jax.transformer.attention import block_causal_mask
from infinity_jax.transformer.kernels.attention_splash import attend_splash
from infinity_jax.transformer.kernels.attention_xla import attend_xla

TEXT = 9


def main() -> None:
    schedule = make_schedule("64px")
    runs = tuple(zip(schedule.tokens, schedule.offsets[1:], strict=True))
    visible = jnp.asarray(block_causal_mask(schedule))[None, None]
    random = np.random.default_rng(0)
    text_mask = jnp.asarray(random.random((4, TEXT)) < 0.7).at[:, 0].set(True)

    def arrays(length: int, heads: int) -> list[jax.Array]:
        shapes = [(4, heads, n, 12) for n in (schedule.length, length, length)]
        return [jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes]

    def self_attention(q, k, v):
        q, k, v = (constrain(x, "batch", "attention_heads", None, None) for x in (q, k, v))
        return attend_splash(q, k, v, "float32", runs)

    def cross_attention(q, k, v):
        q = constrain(q, "batch", "heads", "tokens", None)
        return attend_splash(q, k, v, "float32", mask_BK=text_mask)

    references = {
        self_attention: lambda q, k, v: attend_xla(q, k, v, visible, "float32"),
        cross_attention: lambda q, k, v: attend_xla(q, k, v, text_mask[:, None, None], "float32"),
    }

    def with_gradients(form):
        def both(*qkv):
            out, back = jax.vjp(form, *qkv)
            return out, *back(jnp.sin(out))

        return both

    meshes = (("data=2,sequence=4", 4), ("fsdp=2,tensor=2,sequence=2", 4), ("tensor=4,sequence=2", 3))
    for mesh, heads in meshes:
        layout = layout_of(parse_mesh(mesh))
        for form, reference in references.items():
            given = arrays(schedule.length if form is self_attention else TEXT, heads)
            on_mesh = jax.jit(layout.traced(with_gradients(form)), out_shardings=layout.replicated)
            for a, b in zip(on_mesh(*given), with_gradients(reference)(*given), strict=True):
                error = np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(b)
                assert error < 2e-6, (mesh, form.__name__, float(error))


if __name__ == "__main__":
    main()
