"""The same prompts drawn on several meshes of virtual devices: `mesh_sample.py SYSTEM OUT.npz MESH RULES ...`.

SYSTEM is a folder for `InfinityPipeline.from_pretrained`; the pictures of the default device are stored as "one".
What a search finds, on the default device and on the first mesh, is stored as "search one" and "search".
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
from infinity_jax.sampling.search_plan import Cut, SearchPlan

PROMPTS = ["a red heart", "a blue ball", "a green apple"]


def main(system: str, out: str, cases: list[str]) -> None:
    pipeline = InfinityPipeline.from_pretrained(system)
    pictures = {"one": pipeline.arrays(SampleRequest(PROMPTS, [3, 4, 5])), "search one": _found(pipeline)}
    for mesh, rules in zip(cases[::2], cases[1::2], strict=True):
        pipeline = InfinityPipeline.from_pretrained(system, mesh, rules)
        pictures[mesh] = pipeline.arrays(SampleRequest(PROMPTS, [3, 4, 5]))
        if "search" not in pictures:
            pictures["search"] = _found(pipeline)
        whole = {leaf.is_fully_replicated for leaf in _large(pipeline.model.params)}
        assert whole == {rules == "dp"}, (mesh, whole)
    np.savez(out, **pictures)  # pyright: ignore[reportArgumentType]


def _found(pipeline: InfinityPipeline) -> np.ndarray:
    """The reddest of sixteen candidates, half of them for the later scales."""
    request, plan = SampleRequest(PROMPTS[:1], [3], batch=16), SearchPlan(16, (Cut(0, 8),))
    return pipeline.search(request, plan, lambda images, _: images[..., 0].mean((1, 2))).images


def _large(params):
    return [leaf for leaf in jax.tree.leaves(params) if leaf.size >= 64 * 64]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
