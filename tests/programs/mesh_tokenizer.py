"""Three adversarial train steps of a small tokenizer on virtual devices: `mesh_tokenizer.py OUT.npz MESH ...`.

Stores the losses, the kernels and AdamW's moments of all parameters as MESH/NAME. (A bias before a normalisation has a
gradient of nothing but rounding, which AdamW makes a step of.)
"""

import os
import sys

from infinity_jax.runtime import trees

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["NPROC"] = "32"  # see mesh_run.py
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

import jax
import numpy as np

from infinity_jax.config import TokenizerConfig
from infinity_jax.runtime import sharding
from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.scales import make_schedule
from infinity_jax.tokenizer.model import Tokenizer, initial_variables
from infinity_jax.training import optim
from infinity_jax.training import state as train_state
from infinity_jax.training.adversary import Adversary, with_adversary
from infinity_jax.training.discriminator import DiscriminatorConfig
from infinity_jax.training.state import TrainStep
from infinity_jax.training.tokenizer_step import (
    ADVERSARIAL,
    TokenizerLossConfig,
    TrainingScales,
    make_train_step,
)
from infinity_jax.training.train_tokenizer import feature_loss

TOKENIZER = Tokenizer(
    TokenizerConfig(bits=8, base_width=32, multipliers=(1, 2), encoder_blocks=1, decoder_blocks=1)
)
# AdamW makes steps of equal size of large gradients and of those that are all rounding, which differs: so small steps.
# The norm and the moments are what compares the gradients.
OPTIM = optim.OptimConfig(learning_rate=1e-6, warmup_steps=1)
SCHEDULE = make_schedule("32px")
DISCRIMINATOR = DiscriminatorConfig(base_width=32, layers=1)
LOSS = TokenizerLossConfig()


def run(shape: str, features) -> dict[str, np.ndarray]:
    config = parse_mesh(shape)
    layout = sharding.layout_of(config, devices=jax.devices()[: config.devices])
    optimiser = optim.make_optimiser(OPTIM, 3)
    new_state = train_state.new_state(lambda: initial_variables(TOKENIZER, 8, 0), optimiser, True, layout)
    adversary, side = Adversary(DISCRIMINATOR, optimiser), SCHEDULE.last[0] * TOKENIZER.config.stride
    training_scales = {side: TrainingScales(SCHEDULE, drop=0.5)}
    function = make_train_step(TOKENIZER, LOSS, OPTIM, optimiser, training_scales, features, adversary)
    train_step = with_adversary(TrainStep(function, *new_state, layout), adversary, side, 0)
    state, step = jax.block_until_ready(train_step.fresh_state()), train_step.jitted()
    losses = []
    for seed in range(3):
        image = np.random.default_rng(seed).integers(0, 256, (8, side, side, 3), np.uint8)
        batch = jax.device_put({"image": image, ADVERSARIAL: np.ones(8, bool)}, layout.batch(8))
        state, metrics = jax.block_until_ready(step(state, batch, jax.random.key(0)))
        losses.append([metrics[name] for name in ("loss", "gradient_norm", "adversarial", "discriminator")])
    adversary_state = {"params": state.adversary.params, "moments": state.adversary.opt_state}
    leaves = jax.tree_util.tree_leaves_with_path(
        {"params": state.params, "moments": state.opt_state, "adversary": adversary_state}
    )
    numbers = {trees.parameter_name(path): np.asarray(leaf) for path, leaf in leaves}
    numbers = {name: x for name, x in numbers.items() if "moments" in name or "kernel" in name}
    return numbers | {"losses": np.asarray(losses)}


if __name__ == "__main__":
    net = feature_loss(LOSS, TOKENIZER.config)
    results = {f"{shape}/{name}": array for shape in sys.argv[2:] for name, array in run(shape, net).items()}
    np.savez(sys.argv[1], **results)  # pyright: ignore[reportArgumentType]
