"""Memory of a train step by formula, for devices that nothing can be compiled for here.

The three factors of the activations were fitted to what XLA:TPU plans for the meshes in configs/pods/, and agree with
it within 15%; `experiments/pods.py` prints both side by side. The formula stays: `sweep --dry-run` asks for tens of
cells at once, each of which would take a minute or more to compile, and without a GPU nothing compiles for one.
"""

import dataclasses

from infinity_jax.config import TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.runtime.mesh import MeshConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.training import flops
from infinity_jax.training.optim import OptimConfig
from infinity_jax.transformer.attention import MANY_SCORES

FLOAT32 = 4
# Copies of what goes into a block that are kept for the backward pass.
_SAVED = 2.2
# Arrays [L, C] and [heads, Q, K] of float32 that the backward pass of one block holds at the same time.
_STREAMS, _SCORES = 22.0, 2.3
# The same that each block keeps without remat. Fitted to what XLA:TPU plans for 125m (33.9 and 4.4 GiB) and XLA:CPU for
# models of 0.3M to 7M parameters; scores are those of the cross-attention too.
_KEPT_STREAMS, _KEPT_SCORES = 33.0, 2.6


@dataclasses.dataclass(frozen=True)
class TrainMemory:
    """Bytes on each device.

    Attributes:
      state: parameters, both moments of AdamW and the moving average.
      gradients: of a batch, and their sum over microbatches.
      saved: what goes into each block, kept for the backward pass; without remat all that it needs from them.
      working: the backward pass of one block, with its parameters.
    """

    state: int
    gradients: int
    saved: int
    working: int

    @property
    def total(self) -> int:
        """Adds all of them up."""
        return sum(dataclasses.astuple(self))


def has_formula(config: TransformerConfig, mesh: MeshConfig) -> bool:
    """Tells whether `train_memory` was fitted to models and meshes of this kind."""
    return config.remat in ("none", "block") and mesh.tensor == 1 and config.head == "bits"


def train_memory(
    config: TransformerConfig,
    schedule: ScaleSchedule,
    text_tokens: int,
    batch: int,
    microbatches: int,
    mesh: MeshConfig,
    optim: OptimConfig | None = None,
) -> TrainMemory:
    """Estimates the memory of one device in a train step with remat "block" or "none".

    Args:
      text_tokens: tokens of a caption, padding included.
      batch: pictures over all devices.
      optim: says what is kept of each parameter; None is its defaults.
    Raises:
      UserError: another remat policy or head, or a mesh with `tensor`: the formula was not fitted to them.
    """
    if not has_formula(config, mesh):
        raise UserError(
            f"no formula for remat {config.remat!r}, tensor={mesh.tensor} and head {config.head!r}; use remat block or "
            "none, tensor=1 and head bits"
        )
    parameters = flops.parameter_count(config)
    pictures = batch / microbatches / (mesh.data * mesh.fsdp)
    stream = pictures * schedule.length * config.width * FLOAT32 / mesh.sequence
    pairs = [n * end for n, end in zip(schedule.tokens, schedule.offsets[1:], strict=True)]
    if schedule.length**2 >= MANY_SCORES["tpu"]:
        pairs = [0]  # a kernel computes attention and keeps no scores
    score = pictures * config.heads * FLOAT32 / mesh.sequence
    text = pictures * text_tokens * (config.text_channels + 4 * config.width) * FLOAT32
    layer = parameters / config.layers * FLOAT32
    saved, working = _SAVED * stream, _STREAMS * stream + _SCORES * max(pairs) * score
    if config.remat == "none":
        cross = schedule.length * text_tokens
        saved, working = _KEPT_STREAMS * stream + _KEPT_SCORES * (sum(pairs) + cross) * score, 0
    return TrainMemory(
        state=round((optim or OptimConfig()).state_bytes * parameters / mesh.fsdp),
        gradients=round((2 if microbatches > 1 else 1) * parameters * FLOAT32 / mesh.fsdp),
        saved=round(config.layers * saved),
        working=round(working + text + 2 * layer),
    )
