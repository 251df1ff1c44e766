"""Captions of a batch on meshes of 8 virtual devices, all here or of two processes: `text_on_mesh.py [PORT RANK]`."""

import os
import sys

if __name__ == "__main__":
    devices = 8 if len(sys.argv) == 1 else 4
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["NPROC"] = "32"
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    )

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from helpers.t5 import small_tokenizer

from infinity_jax.runtime import global_batch, sharding
from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.text.on_device import TextOnDevice, padded_ids
from infinity_jax.text.t5 import T5, T5Config
from infinity_jax.text.t5_encoder import T5Encoder

CONFIG = T5Config(width=32, head_size=8, ffn_width=48, heads=4, layers=2, vocabulary=100)
TEXTS = [
    "a red heart",
    "a dog",
    "a very red dog",
    "heart",
    "a",
    "red",
    "dog dog dog",
    "very",
    *["a heart"] * 8,
]
MESHES = ("fsdp=8", "data=8", "data=2,fsdp=2,tensor=2", "fsdp=2,tensor=2,sequence=2", "fsdp=4,tensor=2")


def encoder(params) -> T5Encoder:
    return T5Encoder(40, T5(CONFIG), params, small_tokenizer(), "")


def main() -> None:
    if len(sys.argv) > 1:
        jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    ids, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)
    variables = jax.jit(T5(CONFIG).init)(jax.random.key(0), ids, mask)["params"]
    params = jax.tree.map(np.asarray, nn.meta.unbox(variables))
    wanted, wanted_mask = encoder(params).encode(TEXTS)
    for text in MESHES:
        mesh = parse_mesh(text)
        layout = sharding.layout_of(mesh)
        reader = encoder(params)
        place = TextOnDevice(reader, layout)
        reader.place(place.layout)
        size = len(TEXTS)
        split = layout.batch(size)
        rows = global_batch.rows_here(split, size)
        batch = padded_ids(reader.tokens([TEXTS[row] for row in rows]), 40)
        with jax.transfer_guard_device_to_host("disallow"):
            placed = place(batch, rows, size, split)
        features = placed["text"]
        assert features.shape == (size, 40, CONFIG.width) and features.sharding == split, text
        for shard in features.addressable_shards:
            got, here = np.asarray(shard.data, np.float32), wanted[shard.index[0]]
            length = here.shape[1]
            np.testing.assert_allclose(got[:, :length], here, rtol=2**-7, atol=1e-3, err_msg=text)
            assert not got[:, length:].any()
            flags = wanted_mask[shard.index[0]]
            assert not got[:, :length][~flags].any() and got[:, :length][flags].any()
        print(text, "agrees", flush=True)


if __name__ == "__main__":
    main()
