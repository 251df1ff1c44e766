"""Three train steps of a tiny model on virtual devices: `mesh_run.py DIR MESH RULES WIDTH MICROBATCHES ...`.

Writes to DIR/0.npz, DIR/1.npz, ... the losses and the gradients' norms, and of the last state the parameters, their
average and AdamW's moments (which are means of the gradients); and the same after a move of the checkpoint, see `run`.
"""

import dataclasses
import os
import shutil
import sys
from pathlib import Path

from infinity_jax.runtime import trees

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Threads: with no more than one a device, devices that wait for each other can keep the others from starting.
    os.environ["NPROC"] = "32"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

import jax
import numpy as np

from infinity_jax.checkpoints.run import Checkpointer
from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.runtime import sharding
from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.scales import make_schedule
from infinity_jax.training import optim
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.state import TrainState
from infinity_jax.training.transformer_step import LossConfig, StepConfig, build_step


def model_of(width: int) -> TransformerConfig:
    """Heads of 20 or 24 channels. A width of 100 is not divisible by 8 devices; 80 has the paper's baselines."""
    return TransformerConfig(
        layers=2,
        width=width,
        heads=5 if width == 100 else 4,
        bits=8,
        head="index" if width == 80 else "bits",
        positions="learned:32px" if width == 80 else "rope2d",
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
    return {trees.parameter_name(path): np.asarray(leaf) for path, leaf in leaves}


def run(
    shape: str, rules_name: str, width: int, microbatches: int, checkpoints: Path
) -> dict[str, np.ndarray]:
    """The numbers of one case.

    Before its last step the state is saved. If another case of this width was saved before, the last step is done
    once more from that one's state: its numbers are those named moved/.
    """
    # Where memory is saved by parts it is saved by remat too; neither may change a number.
    model = dataclasses.replace(model_of(width), remat="block" if microbatches > 1 else "none")
    config = parse_mesh(shape)
    layout = sharding.layout_of(config, rules_name, model, jax.devices()[: config.devices])
    settings = TokenizerConfig(bits=8, base_width=32), CorrectionConfig(), LossConfig(), OPTIM, STEPS
    step = build_step(StepConfig(model, *settings, microbatches), [SCHEDULE], layout)
    state = jax.block_until_ready(step.fresh_state())
    jitted = step.jitted()

    def step_fn(*arguments):
        # One program at a time: virtual devices share threads, and two programs can keep each other from ending.
        return jax.block_until_ready(jitted(*arguments))

    results, moved = [], {}
    for number in range(STEPS):
        data = jax.device_put(batch(number), layout.batch(BATCH))
        if number == STEPS - 1:
            if checkpoints.exists():
                reader = Checkpointer(checkpoints, read_only=True)
                other, _ = reader.restore(state)
                reader.close()
                assert jax.tree.map(lambda x: x.sharding, other) == step.shardings
                other, metrics = step_fn(other, data, jax.random.key(0))
                moved = {f"moved/{name}": value for name, value in numbers_of(other).items()}
                shutil.rmtree(checkpoints)
            writer = Checkpointer(checkpoints)
            writer.save(number, state, {"seed": 0, "next_step": number, "examples": 0}, {})
            writer.close()
        state, metrics = step_fn(state, data, jax.random.key(0))
        results.append([metrics["loss"], metrics["gradient_norm"]])
    assert jax.tree.map(lambda x: x.sharding, state) == step.shardings
    state = skip_a_step(
        state, lambda data, key: step_fn(state, jax.device_put(data, layout.batch(BATCH)), key)
    )
    return numbers_of(state) | moved | {"metrics": np.asarray(results, np.float32)}


def skip_a_step(state: TrainState, step_fn) -> TrainState:
    """Takes a step with one picture, so on one device, whose text is not finite: nothing changes on any."""
    before, broken = numbers_of(state), batch(STEPS)
    broken["text"][6] = np.nan  # of a picture whose caption is not dropped at this step
    after, metrics = step_fn(broken, jax.random.key(0))
    assert not np.isfinite(metrics["gradient_norm"])
    assert (int(after.step), int(metrics["skipped_steps"]), int(after.skipped.in_a_row)) == (STEPS + 1, 1, 1)
    for copies in jax.tree.leaves(after.skipped):
        assert all(int(copy.data) == 1 for copy in copies.addressable_shards)
    jax.tree.map(np.testing.assert_array_equal, numbers_of(after), before)
    return after


if __name__ == "__main__":
    folder, *cases = sys.argv[1:]
    for number in range(len(cases) // 4):
        shape, rules, width, microbatches = cases[4 * number : 4 * number + 4]
        numbers = run(shape, rules, int(width), int(microbatches), Path(folder) / f"checkpoints-{width}")
        np.savez(Path(folder) / f"{number}.npz", **numbers)  # pyright: ignore[reportArgumentType]
