"""The training loop of both models, and how a run starts.

Order within the loop: save -> next(batch) -> step -> log the previously logged step's metrics. The host
asks the device for numbers only one step late, so it never waits for the device while there is work to queue.
"""

import contextlib
import dataclasses
import functools
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Array, Key

from infinity_jax.checkpoints.run import Checkpointer
from infinity_jax.errors import UserError
from infinity_jax.runtime import global_batch, stop_signals
from infinity_jax.runtime.compiled_step import CompiledStep
from infinity_jax.runtime.sharding import Layout
from infinity_jax.training import start
from infinity_jax.training.config import TrainConfig
from infinity_jax.training.run_log import MetricsWriter, Progress
from infinity_jax.training.state import TrainState

Batch = Mapping[str, np.ndarray]
RowsOf = Callable[[int], np.ndarray]
BatchesFrom = Callable[[int, RowsOf], Iterator[Batch]]
StepFunction = Callable[[TrainState, Any, Key[Array, ""]], tuple[TrainState, Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Hook:
    """Something done every `every` steps (0: never) and after the last one.

    `call(step, state)` may return metrics, which are appended to evaluations.jsonl. It must not keep the state.
    """

    every: int
    call: Callable[[int, TrainState], Mapping[str, Any] | None]


def run(
    workdir: str | Path,
    train: TrainConfig,
    new_state: Callable[[], TrainState],
    placed: TrainState,
    layout: Layout,
    step_fn: StepFunction,
    batches: BatchesFrom,
    config: Mapping[str, Any],
    hooks: Sequence[Hook] = (),
    load_params: Callable[[str, Any], Any] | None = None,
    batch_size_at: Callable[[int], int] | None = None,
    on_device: Callable[[dict[str, jax.Array]], dict[str, jax.Array]] = lambda batch: batch,
) -> TrainState:
    """Trains to `train.steps`, from the newest complete checkpoint of `workdir` if there is one.

    Of several processes all run this alike; only the first writes metrics.

    Args:
      workdir: gets checkpoints/, metrics.jsonl, evaluations.jsonl and tensorboard/.
      train: lengths and intervals.
      new_state: makes a fresh state, of which a restored one has the shapes. See `state.new_state`.
      placed: where each of its arrays lies, NamedShardings.
      layout: where batches and activations go.
      step_fn: (state, batch, seed key) -> (state, metrics with "loss"); a pure function, compiled here. Random
        numbers come from `infinity_jax.runtime.seeds.stream(seed key, name, state.step)`.
      batches: told the first step (0-based) and, for any batch size, the rows that this process reads of such a batch,
        gives those rows of the batches from there on, dicts of numpy arrays.
      config: the whole config as plain dicts, stored in every checkpoint.
      hooks: sample sheets and evaluations; run before the checkpoint of the same step.
      load_params: (path, params like those wanted) -> params, for `train.init_from`; by default from our checkpoints.
      batch_size_at: step (0-based) -> pictures of the whole batch; by default always `train.batch_size`.
      on_device: what is made of each batch on the devices before the step sees it.
    Returns:
      the last state.
    Raises:
      UserError: the loss is not finite; a full disk; a checkpoint of another model or another seed.
      SystemExit: after SIGTERM (code 0) or SIGINT (130), once a checkpoint is saved.
    """
    # The new state lies where the old one does, and numbers to look at lie whole on every device.
    step_fn = CompiledStep(
        jax.jit(layout.traced(step_fn), donate_argnums=0, out_shardings=(placed, layout.replicated))
    )
    checkpointer = Checkpointer(
        Path(workdir) / "checkpoints", train.keep_checkpoints, train.keep_every, train.keep_best
    )
    sizes = batch_size_at or (lambda step: train.batch_size)
    state = start.first_state(checkpointer, train, new_state, placed, load_params or start.load_params, sizes)
    first = int(state.step)
    if first >= train.steps:
        logging.info("the run already has its %d steps; raise train.steps to go on", train.steps)
        checkpointer.close()
        return state
    # A shorter run's last line stands outside the rhythm of log_every; a run that goes on has no such line.
    writer = MetricsWriter(workdir, first if first % train.log_every == 0 else first - 1)
    loop = _Loop(train, step_fn, checkpointer, writer, config, tuple(hooks), layout, sizes, on_device)
    with contextlib.closing(checkpointer), contextlib.closing(writer):
        return loop.run(state, first, batches)


class _Loop:
    """One run's fixed parts, so that each part of the loop is a short method."""

    def __init__(
        self,
        train: TrainConfig,
        step_fn: Callable,
        checkpointer: Checkpointer,
        writer: MetricsWriter,
        config: Mapping[str, Any],
        hooks: tuple[Hook, ...],
        layout: Layout,
        batch_size_at: Callable[[int], int],
        on_device: Callable = lambda batch: batch,
    ):
        self.train, self.step_fn, self.hooks, self.layout = train, step_fn, hooks, layout
        self.batch_size_at, self.on_device = batch_size_at, on_device
        self.checkpointer, self.writer, self.config = checkpointer, writer, config
        # (step, metrics on the device) of a step that is to be logged but not yet waited for.
        self.pending: tuple[int, Mapping[str, Any]] | None = None

    def run(self, state: TrainState, first: int, batches: BatchesFrom) -> TrainState:
        train = self.train
        seed_key = jax.jit(lambda: jax.random.key(train.seed), out_shardings=self.layout.replicated)()
        sharding_of = functools.cache(self.layout.batch)
        rows_of = functools.cache(lambda size: global_batch.rows_here(sharding_of(size), size))
        self.progress = Progress(first, train.steps)
        self.count_time_from(first)
        with (
            stop_signals.received() as stop_asked,
            contextlib.closing(self.progress),
            _closing(batches(first, rows_of)) as stream,
        ):
            stop = None
            for step in range(first + 1, train.steps + 1):
                asked = time.perf_counter()
                batch = next(stream, None)
                self.waited += time.perf_counter() - asked
                if batch is None:
                    raise UserError(f"the data ended before step {step}; it needs at least one batch")
                size = self.batch_size_at(step - 1)
                batch = self.on_device(global_batch.place(batch, rows_of(size), size, sharding_of(size)))
                with jax.transfer_guard("disallow"):
                    state, metrics = self.step_fn(state, batch, seed_key)
                self.log_pending()
                if step % train.log_every == 0 or step == train.steps:
                    self.pending = (step, metrics)
                stop = stop_asked()
                self.after_step(step, state, metrics, stop is not None)
                self.progress.advance()
                if stop is not None:
                    break
            self.checkpointer.wait()
            # Also after the last step, which another run may follow: the next stage.
            stop = stop or stop_asked()
            if stop is not None:
                logging.warning(
                    "stopped at step %d, saved; the same command goes on from there", int(state.step)
                )
                raise SystemExit(0 if stop == signal.SIGTERM else 130)
        return state

    def after_step(self, step: int, state: TrainState, metrics: Mapping[str, Any], stopping: bool) -> None:
        """Hooks, then the checkpoint. A checkpoint of step n promises that all lines up to n are written."""
        self.checkpointer.check()
        last = step == self.train.steps
        due = [hook for hook in self.hooks if hook.every and (last or step % hook.every == 0)]
        save = last or stopping or step % self.train.checkpoint_every == 0
        if not due and not save:
            return
        self.log_pending()
        _check_finite(step, metrics, self.checkpointer.latest_step())
        evaluated: dict[str, Any] = {}
        for hook in due:
            values = hook.call(step, state)
            if values:
                self.writer.write(step, values, "evaluations.jsonl")
                evaluated |= values
        if save:
            examples = sum(map(self.batch_size_at, range(step)))
            data = {"seed": self.train.seed, "next_step": step, "examples": examples}
            self.checkpointer.save(step, state, data, self.config, self.judged_by(evaluated))
        if due or save:
            # Time spent here is not training time.
            self.count_time_from(step)

    def count_time_from(self, step: int) -> None:
        """Starts the clock of the numbers that are logged next."""
        self.logged_step, self.logged_time, self.waited = step, time.perf_counter(), 0.0

    def judged_by(self, evaluated: Mapping[str, Any]) -> dict[str, float] | None:
        """The numbers of an evaluation; UserError if `train.keep_best` is not among them."""
        numbers = {name: float(value) for name, value in evaluated.items() if isinstance(value, (int, float))}
        best = self.train.keep_best
        if best and numbers and best not in numbers:
            raise UserError(f"train.keep_best {best!r} is not evaluated; use one of {', '.join(numbers)}")
        return numbers or None

    def log_pending(self) -> None:
        """Waits for the step that is to be logged, checks it and writes its line."""
        if self.pending is None:
            return
        step, metrics = self.pending
        self.pending = None
        values = jax.device_get(dict(metrics))
        _check_finite(step, values, self.checkpointer.latest_step())
        now = time.perf_counter()
        first, passed = self.logged_step, now - self.logged_time
        seconds = passed / max(1, step - first)
        pictures = sum(map(self.batch_size_at, range(first, step))) / max(1, step - first)
        timing = {"seconds_per_step": seconds, "images_per_second": pictures / seconds}
        timing["data_wait_share"] = self.waited / passed
        self.count_time_from(step)
        self.writer.write(step, {**values, **timing})
        self.progress.show(step, values, seconds)


def _check_finite(step: int, metrics: Mapping[str, Any], saved: int | None) -> None:
    """Raises UserError if the loss or the gradients' norm is not finite."""
    for name in ("loss", "gradient_norm", "discriminator", "adversarial_weight"):
        if name in metrics and not np.isfinite(jax.device_get(metrics[name])):
            kept = (
                "no checkpoint was saved before"
                if saved is None
                else f"the checkpoint of step {saved} is kept"
            )
            raise UserError(
                f"{name} is {float(metrics[name])} at step {step}; {kept}. Try a lower optim.learning_rate, "
                "a longer optim.warmup_steps, a lower optim.clip, or compute_dtype float32"
            )


@contextlib.contextmanager
def _closing(stream: Iterator[Batch]) -> Iterator[Iterator[Batch]]:
    """Closes the batches' iterator at the end if it can be closed (it may hold threads)."""
    try:
        yield stream
    finally:
        close = getattr(stream, "close", None)
        if close is not None:
            close()
