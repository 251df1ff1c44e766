"""What the configs of this folder share: configs/t2i.py with the mesh that fits a pod."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infinity_jax import config_files
from infinity_jax.errors import UserError


def load_for_pod(meshes: Mapping[str, Mapping[str, tuple[str, int, str]]], argument: str) -> Any:
    """Makes the config of a size and a stage with a pod's mesh.

    Args:
      meshes: stage -> size -> (mesh, microbatches, remat).
      argument: like "2.2b,0.06M".
    Raises:
      UserError: the table has no such stage or size.
    """
    size, _, stage = argument.partition(",")
    if size not in meshes.get(stage, {}):
        known = ", ".join(f"{size},{stage}" for stage, sizes in meshes.items() for size in sizes)
        raise UserError(f"no mesh for {argument!r} on this pod; there are: {known}")
    config = config_files.load(f"{Path(__file__).parents[1] / 't2i.py'}:{argument}")
    config.mesh.shape, config.train.microbatches, config.model.remat = meshes[stage][size]
    config.train.sample_every = 0  # the meshes are chosen for the train step; the sampler may not fit
    return config
