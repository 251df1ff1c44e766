"""A tiny linear model trained by the real loop; `python tests/helpers/toy_run.py WORKDIR STEPS [KILL_AT]` runs it."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.checkpoints.run import Checkpointer
from infinity_jax.runtime import sharding
from infinity_jax.runtime.mesh import MeshConfig
from infinity_jax.runtime.seeds import stream
from infinity_jax.training import loop, optim, run_log
from infinity_jax.training import state as train_state
from infinity_jax.training.config import TrainConfig
from infinity_jax.training.state import TrainStep

OPTIM = optim.OptimConfig(learning_rate=0.05, warmup_steps=2)
CONFIG = {"train": {"steps": 20}, "sizes": [1, 2]}


def config(steps: int = 20, **changes) -> TrainConfig:
    return TrainConfig(**{"steps": steps, "batch_size": 8, "log_every": 3, "checkpoint_every": 5, **changes})


def fresh_state(width: int = 3) -> train_state.TrainState:
    params = {"layer": {"kernel": jnp.ones((4, width)), "bias": jnp.zeros(width)}}
    return train_state.create(params, optim.make_optimiser(OPTIM, 20), ema=True)


def step_fn(state, batch, seed_key):
    noise = jax.random.normal(stream(seed_key, "noise", state.step), (batch["x"].shape[0], 3))

    def loss_fn(params):
        error = batch["x"] @ params["layer"]["kernel"] + params["layer"]["bias"] - batch["y"] + 0.1 * noise
        return jnp.mean(error**2), jnp.mean(error**2, 0)

    (loss, per_output), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    new = train_state.apply_gradients(state, grads, optim.make_optimiser(OPTIM, 20), 0.9)
    return new, {"loss": loss, "loss_per_scale": per_output}


def layout() -> sharding.Layout:
    return sharding.layout_of(MeshConfig(), "dp", devices=jax.devices()[:1])


def train_step(step_fn=step_fn) -> TrainStep:
    """The step, with everything on the one device."""
    shardings = jax.tree.map(lambda _: layout().replicated, jax.eval_shape(fresh_state))
    return TrainStep(step_fn, fresh_state, shardings, layout())


def load_params(path: str, target_params: Any) -> Any:
    """Reads the parameters of the newest checkpoint in a workdir or its folder of checkpoints.

    Raises:
      UserError: there is none, or they are not like `target_params`.
    """
    folder = Path(path)
    nested = folder / "checkpoints"
    with contextlib.closing(Checkpointer(nested if nested.is_dir() else folder, read_only=True)) as reader:
        return reader.restore_params(target_params)


def data(batches) -> loop.Data:
    """Batches of 8."""
    return loop.Data(batches, lambda step: 8 * step)


def batches(first: int, rows_of: loop.RowsOf) -> Iterator[dict[str, np.ndarray]]:
    step, rows = first, rows_of(8)
    while True:
        numbers = np.random.default_rng((7, step))
        x = numbers.normal(size=(8, 4)).astype(np.float32)
        yield {"x": x[rows], "y": x[rows, :3] * 2}
        step += 1


def killed_at(step: int):
    """Batches that kill the process, without warning, when that of `step` is asked for."""

    def stream_of(first: int, rows_of: loop.RowsOf):
        for number, batch in enumerate(batches(first, rows_of), first):
            if number == step:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    return stream_of


def lines(workdir: Path) -> list[dict]:
    """The metrics of a run without what depends on the clock."""
    records = run_log.read_lines(workdir / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k not in run_log.TIMING_KEYS} for record in records]


def run(
    workdir, steps: int = 20, *, batches=batches, step_fn=step_fn, hooks=(), **changes
) -> train_state.TrainState:
    return loop.run(
        workdir,
        config(steps, **changes),
        train_step(step_fn),
        data(batches),
        CONFIG,
        hooks,
        load_params=load_params,
    )


if __name__ == "__main__":
    folder, count, *kill = sys.argv[1:]
    run(folder, int(count), batches=killed_at(int(kill[0])) if kill else batches)
