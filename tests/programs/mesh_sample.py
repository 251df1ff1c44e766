"""The same prompts drawn on several meshes of virtual devices: `mesh_sample.py SYSTEM OUT.npz MESH RULES ...`.

SYSTEM is a folder for `InfinityPipeline.from_pretrained`; the pictures of the default device are stored as "one".
"""

import os
import sys

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

import jax
import numpy as np

from infinity_jax import InfinityPipeline
from infinity_jax.sampling.request import SampleRequest

PROMPTS = ["a red heart", "a blue ball", "a green apple"]


def main(system: str, out: str, cases: list[str]) -> None:
    pictures = {"one": InfinityPipeline.from_pretrained(system).arrays(SampleRequest(PROMPTS, [3, 4, 5]))}
    for mesh, rules in zip(cases[::2], cases[1::2], strict=True):
        pipeline = InfinityPipeline.from_pretrained(system, mesh, rules)
        pictures[mesh] = pipeline.arrays(SampleRequest(PROMPTS, [3, 4, 5]))
        whole = {leaf.is_fully_replicated for leaf in _large(pipeline.model.params)}
        assert whole == {rules == "dp"}, (mesh, whole)
    np.savez(out, **pictures)  # pyright: ignore[reportArgumentType]


def _large(params):
    return [leaf for leaf in jax.tree.leaves(params) if leaf.size >= 64 * 64]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
