"""Memory of a train step by formula, for devices that nothing can be compiled for here.

The three factors of the activations were fitted to what XLA:TPU plans for the meshes in configs/pods/, and agree with
it within 15%; `benchmarks/pods.py` prints both side by side.
"""

import dataclasses

from infinity_jax import flops
from infinity_jax.config import TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.mesh import MeshConfig
from infinity_jax.model.attention import MANY_SCORES
from infinity_jax.scales import ScaleSchedule

FLOAT32 = 4
# Copies of what goes into a block that are kept for the backward pass.
_SAVED = 2.2
# Arrays [L, C] and [heads, Q, K] of float32 that the backward pass of one block holds at the same time.
_STREAMS, _SCORES = 22.0, 2.3


@dataclasses.dataclass(frozen=True)
class TrainMemory:
    """Bytes on each device.

    Attributes:
      state: parameters, both moments of AdamW and the moving average.
      gradients: of a batch, and their sum over microbatches.
      saved: what goes into each block, kept for the backward pass.
      working: the backward pass of one block, with its parameters.
    """

    state: int
    gradients: int
    saved: int
    working: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(dataclasses.astuple(self))


def train_memory(
    config: TransformerConfig,
    schedule: ScaleSchedule,
    text_tokens: int,
    batch: int,
    microbatches: int,
    mesh: MeshConfig,
) -> TrainMemory:
    """Memory of one device in a train step with remat "block".

    Args:
      text_tokens: tokens of a caption, padding included.
      batch: pictures over all devices.
    Raises:
      UserError: another remat policy or head, or a mesh with `tensor`: the formula was not fitted to them.
    """
    if config.remat != "block" or mesh.tensor > 1 or config.head != "bits":
        raise UserError(
            f"no formula for remat {config.remat!r}, tensor={mesh.tensor} and head {config.head!r}; use remat block, "
            "tensor=1 and head bits"
        )
    parameters = flops.parameter_count(config)
    pictures = batch / microbatches / (mesh.data * mesh.fsdp)
    stream = pictures * schedule.length * config.width * FLOAT32 / mesh.sequence
    most_pairs = max(n * end for n, end in zip(schedule.tokens, schedule.offsets[1:], strict=True))
    if schedule.length**2 >= MANY_SCORES["tpu"]:
        most_pairs = 0  # a kernel computes attention and keeps no scores
    scores = pictures * most_pairs * config.heads * FLOAT32 / mesh.sequence
    text = pictures * text_tokens * (config.text_channels + 4 * config.width) * FLOAT32
    layer = parameters / config.layers * FLOAT32
    return TrainMemory(
        state=round(4 * parameters * FLOAT32 / mesh.fsdp),
        gradients=round((2 if microbatches > 1 else 1) * parameters * FLOAT32 / mesh.fsdp),
        saved=round(_SAVED * config.layers * stream),
        working=round(_STREAMS * stream + _SCORES * scores + text + 2 * layer),
    )
