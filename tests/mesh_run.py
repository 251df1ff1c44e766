"""Three train steps of a tiny model on virtual devices: `python tests/mesh_run.py DIR MESH RULES WIDTH [MESH ...]`.

Writes to DIR/0.npz, DIR/1.npz, ... the losses and the gradients' norms, and of the last state the parameters, their
average and AdamW's moments (which are means of the gradients); and the same after a move of the checkpoint, see `run`.
"""

import os
import shutil
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

import jax
import numpy as np

from infinity_jax import optim, sharding, train
from infinity_jax.checkpoint import Checkpointer
from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.correction import CorrectionConfig
from infinity_jax.mesh import device_mesh, parse_mesh
from infinity_jax.model.transformer import Transformer
from infinity_jax.scales import make_schedule
from infinity_jax.train_state import TrainState
from infinity_jax.train_step import LossConfig, make_train_step


def model_of(width: int) -> TransformerConfig:
    """Heads of 20 or 24 channels; a width of 100 is not divisible by 8 devices."""
    return TransformerConfig(
        layers=2,
        width=width,
        heads=5 if width == 100 else 4,
        bits=8,
        text_channels=128,
        text_length=8,
        drop_path=0.2,
        compute_dtype="float32",
    )


SCHEDULE = make_schedule("32px")
OPTIM = optim.OptimConfig(learning_rate=1e-4, warmup_steps=1)
STEPS, BATCH = 3, 8


def batch(step: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(step)
    return {
        "features": random.standard_normal((BATCH, *SCHEDULE.last, 8)).astype(np.float32),
        "text": random.standard_normal((BATCH, 8, 128)).astype(np.float32),
        "text_mask": np.arange(8) < random.integers(1, 9, (BATCH, 1)),
    }


def numbers_of(state: TrainState) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(
        {"params": state.params, "ema": state.ema_params, "optimiser": state.opt_state}
    )
    return {optim.parameter_name(path): np.asarray(leaf) for path, leaf in leaves}


def run(shape: str, rules_name: str, width: int, checkpoints: Path) -> dict[str, np.ndarray]:
    """The numbers of one case.

    Before its last step the state is saved. If another case of this width was saved before, the last step is done
    once more from that one's state: its numbers are those named moved/.
    """
    model = model_of(width)
    config, rules = parse_mesh(shape), sharding.rules_named(rules_name)
    mesh = device_mesh(config, model, jax.devices()[: config.devices])
    optimiser = optim.make_optimiser(OPTIM, STEPS, no_decay=train.not_a_kernel)
    new_state, placed = train.sharded_state(model, SCHEDULE, optimiser, True, 0, mesh, rules)
    state = jax.jit(new_state, out_shardings=placed)()
    tokenizer = TokenizerConfig(bits=8, base_width=32)
    step_fn = make_train_step(
        Transformer(model), SCHEDULE, tokenizer, CorrectionConfig(), LossConfig(), OPTIM, optimiser
    )
    step_fn = jax.jit(step_fn, donate_argnums=0, out_shardings=(placed, None))
    results, moved = [], {}
    for step in range(STEPS):
        data = jax.device_put(batch(step), sharding.batch_sharding(mesh, rules, BATCH))
        if step == STEPS - 1:
            if checkpoints.exists():
                reader = Checkpointer(checkpoints, read_only=True)
                other, _ = reader.restore(state)
                reader.close()
                assert jax.tree.map(lambda x: x.sharding, other) == placed
                other, metrics = step_fn(other, data, jax.random.key(0))
                moved = {f"moved/{name}": value for name, value in numbers_of(other).items()}
                shutil.rmtree(checkpoints)
            writer = Checkpointer(checkpoints)
            writer.save(step, state, {}, {})
            writer.close()
        state, metrics = step_fn(state, data, jax.random.key(0))
        results.append([metrics["loss"], metrics["gradient_norm"]])
    assert jax.tree.map(lambda x: x.sharding, state) == placed
    return numbers_of(state) | moved | {"metrics": np.asarray(results, np.float32)}


if __name__ == "__main__":
    folder, *cases = sys.argv[1:]
    for number, case in enumerate(zip(cases[::3], cases[1::3], map(int, cases[2::3]), strict=True)):
        numbers = run(*case, Path(folder) / f"checkpoints-{case[2]}")
        np.savez(Path(folder) / f"{number}.npz", **numbers)  # pyright: ignore[reportArgumentType]
