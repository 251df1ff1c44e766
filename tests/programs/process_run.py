"""A small sharded model trained by the real loop, as one of several processes:

    python tests/programs/process_run.py [--coordinator ...] [--at STEP EVENT] WORKDIR STEPS MESH DEVICES

DEVICES are virtual ones of this process. Events, when the batch of STEP is read: `term`, this process gets SIGTERM;
`full`, the system refuses what it writes from then on, as a full disk does. And `kill-in-save`: it gets SIGKILL when
it has written its part of the checkpoint of STEP and no other knows.
"""

import argparse
import os
import resource
import signal
import sys

from infinity_jax.cli import options

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={sys.argv[-1]} --xla_backend_optimization_level=0"
    )

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from helpers import toy_run

from infinity_jax.checkpoints import run
from infinity_jax.cli import exit_codes
from infinity_jax.data import batches as pipeline
from infinity_jax.runtime import distributed, sharding, start_up
from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.runtime.seeds import stream
from infinity_jax.training import loop, optim
from infinity_jax.training import state as train_state
from infinity_jax.training.config import TrainConfig
from infinity_jax.training.state import TrainStep

OPTIMISER = optim.make_optimiser(optim.OptimConfig(learning_rate=0.05, warmup_steps=2), 100)
BATCH, WIDTH, HIDDEN = 8, 32, 64
# Long enough for a busy machine; a survivor is given up after this.
HEARTBEAT_SECONDS = 10


class Pictures:
    """A source of 50 records."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int):
        return {"x": np.random.default_rng(index).normal(size=WIDTH).astype(np.float32)}


def variables():
    """Two kernels, split by rows and by columns."""
    draw = nn.initializers.lecun_normal()
    kernels = {"first": ("embed", "mlp", WIDTH, HIDDEN), "second": ("mlp", "embed", HIDDEN, WIDTH)}
    return {
        name: nn.Partitioned(draw(jax.random.key(i), sizes), names=tuple(axes))
        for i, (name, (*axes, rows, columns)) in enumerate(kernels.items())
        for sizes in [(rows, columns)]
    }


def step_fn(state, batch, seed_key):
    x = batch["x"]
    noisy = x + 0.1 * jax.random.normal(stream(seed_key, "noise", state.step), x.shape)

    def loss_fn(params):
        return jnp.mean((jnp.tanh(noisy @ params["first"]) @ params["second"] - x) ** 2)

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return train_state.apply_gradients(state, grads, OPTIMISER, 0.9), {"loss": loss}


def batches(first: int, rows, events):
    stream_of_rows = pipeline.batches(Pictures(), batch_size=BATCH, seed=0, first_step=first, rows=rows)
    for step, batch in enumerate(stream_of_rows, first + 1):
        if (step, "term") in events:
            os.kill(os.getpid(), signal.SIGTERM)
        if (step, "full") in events:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        yield batch


def kill_in_save(step: int) -> None:
    wait = run._Barrier.__call__

    def dying(self, *, key: str, timeout_ms: int) -> None:
        if key.endswith(f"async_write_complete.{step}"):
            os.kill(os.getpid(), signal.SIGKILL)
        wait(self, key=key, timeout_ms=timeout_ms)

    run._Barrier.__call__ = dying


def main(arguments: argparse.Namespace) -> int:
    start_up.log_to_stderr()
    distributed.start(options.processes_of(arguments), HEARTBEAT_SECONDS)
    events = {(int(step), event) for step, event in arguments.at}
    for step, event in events:
        if event == "kill-in-save":
            kill_in_save(step)
    layout = sharding.layout_of(parse_mesh(arguments.mesh), "fsdp_tp")
    step = TrainStep(step_fn, *train_state.new_state(variables, OPTIMISER, True, layout), layout)
    every = arguments.checkpoint_every
    loop.run(
        arguments.workdir,
        TrainConfig(arguments.steps, BATCH, log_every=1, checkpoint_every=every, keep_checkpoints=2),
        step,
        loop.Data(lambda first, rows_of: batches(first, rows_of(BATCH), events), lambda step: step * BATCH),
        {"mesh": arguments.mesh},
        load_params=toy_run.load_params,
    )
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    options.add_processes(parser)
    parser.add_argument("--at", nargs=2, action="append", default=[])
    parser.add_argument("--checkpoint-every", type=int, default=3)
    parser.add_argument("workdir")
    parser.add_argument("steps", type=int)
    parser.add_argument("mesh")
    parser.add_argument("devices")
    parsed = parser.parse_args()
    sys.exit(exit_codes.of(lambda: main(parsed), several=parsed.coordinator is not None))
