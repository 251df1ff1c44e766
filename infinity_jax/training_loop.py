"""The training loop of both models, and how a run starts.

Order within the loop: save -> next(batch) -> step -> log the previously logged step's metrics. The host
asks the device for numbers only one step late, so it never waits for the device while there is work to queue.
"""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Array, Key

from infinity_jax import durations, stop_signals
from infinity_jax.checkpoint import Checkpointer
from infinity_jax.config import Section, from_dict
from infinity_jax.errors import UserError
from infinity_jax.metrics import MetricsWriter
from infinity_jax.progress import Progress
from infinity_jax.train_state import TrainState

Batch = Mapping[str, np.ndarray]
StepFunction = Callable[[TrainState, Any, Key[Array, ""]], tuple[TrainState, Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long and how a run goes; all `*_every` are in steps, 0 means never.

    Attributes:
      steps: length of the run.
      batch_size: examples a step.
      seed: of the data's order and of all random streams.
      log_every: steps between lines of metrics.jsonl.
      checkpoint_every: steps between checkpoints; the last step always has one.
      keep_checkpoints: how many of the newest are kept.
      sample_every: steps between sample sheets.
      evaluate_every: steps between evaluations.
      restore_from: another run's checkpoints to go on from with its optimiser and step, in a new workdir.
      init_from: checkpoints of which only the parameters are taken; the run starts at step 0.
    """

    steps: int
    batch_size: int
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    sample_every: int = 0
    evaluate_every: int = 0
    restore_from: str = ""
    init_from: str = ""

    def __post_init__(self):
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} is {getattr(self, name)}; it must be at least 1")


def train_config(section: Section, examples: int) -> TrainConfig:
    """A config file's `train` section with its durations ("2 epochs", "10%") in steps; `examples` make an epoch."""
    values = dict(section)
    size = values.get("batch_size", 0)
    if size < 1:
        raise UserError(f"train.batch_size is {size}; it must be at least 1")
    values["steps"] = durations.in_steps(values["steps"], steps=None, batch_size=size, examples=examples)
    for name in ("log_every", "checkpoint_every", "sample_every", "evaluate_every"):
        if name in values:
            values[name] = durations.in_steps(
                values[name], steps=values["steps"], batch_size=size, examples=examples
            )
    return from_dict(TrainConfig, values, "train")


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
    state: TrainState,
    step_fn: StepFunction,
    batches: Callable[[int], Iterator[Batch]],
    config: Mapping[str, Any],
    hooks: Sequence[Hook] = (),
    load_params: Callable[[str, Any], Any] | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> TrainState:
    """Trains to `train.steps`, from the newest checkpoint of `workdir` if there is one.

    Args:
      workdir: gets checkpoints/, metrics.jsonl, evaluations.jsonl and tensorboard/.
      train: lengths and intervals.
      state: a fresh state, which a restored one will lie like. Its buffers are donated: do not use it afterwards.
      step_fn: (state, batch, seed key) -> (state, metrics with "loss"); a pure function, jitted here. Random
        numbers come from `infinity_jax.random.stream(seed key, name, state.step)`.
      batches: told the first step (0-based), gives the batches from there on, dicts of numpy arrays.
      config: the whole config as plain dicts, stored in every checkpoint.
      hooks: sample sheets and evaluations; run before the checkpoint of the same step.
      load_params: (path, params like those wanted) -> params, for `train.init_from`; by default from our checkpoints.
      sharding: where batches go; None is the default device.
    Returns:
      the last state.
    Raises:
      UserError: the loss is not finite; a full disk; a checkpoint of another model or another seed.
      SystemExit: after SIGTERM (code 0) or SIGINT (130), once a checkpoint is saved.
    """
    # The new state lies where the old one does: nothing but the step itself decides when data moves.
    placed = jax.tree.map(lambda array: array.sharding, state)
    step_fn = jax.jit(step_fn, donate_argnums=0, out_shardings=(placed, None))
    checkpointer = Checkpointer(Path(workdir) / "checkpoints", train.keep_checkpoints)
    state = _start(checkpointer, train, state, load_params or _load_params)
    first = int(state.step)
    if first >= train.steps:
        logging.info("the run already has its %d steps; raise train.steps to go on", train.steps)
        checkpointer.close()
        return state
    # A shorter run's last line stands outside the rhythm of log_every; a run that goes on has no such line.
    writer = MetricsWriter(workdir, first if first % train.log_every == 0 else first - 1)
    loop = _Loop(train, step_fn, checkpointer, writer, config, tuple(hooks), sharding)
    with contextlib.closing(checkpointer), contextlib.closing(writer):
        return loop.run(state, first, batches)


def _load_params(path: str, target_params: Any) -> Any:
    folder = Path(path)
    nested = folder / "checkpoints"
    reader = Checkpointer(nested if nested.is_dir() else folder, read_only=True)
    try:
        return reader.restore_params(target_params)
    finally:
        reader.close()


def _start(
    checkpointer: Checkpointer, train: TrainConfig, state: TrainState, load_params: Callable
) -> TrainState:
    """The first state: resume -> restore_from -> init_from -> scratch, whichever comes first."""
    if checkpointer.latest_step() is not None:
        state, data = checkpointer.restore(state)
        _check_data(data, train)
        logging.info("start: resume at step %d from %s", int(state.step), checkpointer.directory)
    elif train.restore_from:
        source = Path(train.restore_from) / "checkpoints"
        other = Checkpointer(source if source.is_dir() else train.restore_from, read_only=True)
        state, data = other.restore(state)
        other.close()
        _check_data(data, train)
        logging.info("start: restore_from %s at step %d", train.restore_from, int(state.step))
    elif train.init_from:
        # On the device: a reader may give NumPy arrays, and the loop forbids transfers inside a step.
        placed = jax.tree.map(lambda array: array.sharding, state.params)
        params = jax.device_put(load_params(train.init_from, state.params), placed)
        ema = state.ema_params if state.ema_params is None else jax.tree.map(lambda p: p.copy(), params)
        state = state.replace(params=params, ema_params=ema)  # pyright: ignore[reportAttributeAccessIssue]
        logging.info("start: init_from %s at step 0", train.init_from)
    else:
        logging.info("start: scratch")
    return state


def _check_data(data: Mapping[str, Any], train: TrainConfig) -> None:
    """A resumed run must see the data that the uninterrupted one would have seen."""
    if data["seed"] != train.seed:
        raise UserError(
            f"the checkpoint's run has train.seed {data['seed']}, this config {train.seed}; "
            f"set --config.train.seed={data['seed']} to resume, or use another --workdir"
        )
    if data["examples"] != data["next_step"] * train.batch_size:
        logging.warning("train.batch_size is now %d; the checkpoint's run had another one", train.batch_size)


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
        sharding: jax.sharding.Sharding | None,
    ):
        self.train, self.step_fn, self.hooks = train, step_fn, hooks
        self.checkpointer, self.writer, self.config, self.sharding = checkpointer, writer, config, sharding
        # (step, metrics on the device) of a step that is to be logged but not yet waited for.
        self.pending: tuple[int, Mapping[str, Any]] | None = None

    def run(self, state: TrainState, first: int, batches: Callable[[int], Iterator[Batch]]) -> TrainState:
        train = self.train
        seed_key = jax.device_put(jax.random.key(train.seed), state.step.sharding)
        self.progress = Progress(first, train.steps)
        self.logged_step, self.logged_time = first, time.perf_counter()
        with (
            stop_signals.received() as stop,
            contextlib.closing(self.progress),
            _closing(batches(first)) as stream,
        ):
            for step in range(first + 1, train.steps + 1):
                batch = next(stream, None)
                if batch is None:
                    raise UserError(f"the data ended before step {step}; it needs at least one batch")
                batch = jax.device_put(dict(batch), self.sharding)
                with jax.transfer_guard("disallow"):
                    state, metrics = self.step_fn(state, batch, seed_key)
                self.log_pending()
                if step % train.log_every == 0 or step == train.steps:
                    self.pending = (step, metrics)
                self.after_step(step, state, metrics, bool(stop))
                self.progress.advance()
                if stop and step < train.steps:
                    logging.warning("stopped at step %d, saved; the same command goes on from there", step)
                    raise SystemExit(0 if stop[0] == signal.SIGTERM else 130)
        return state

    def after_step(self, step: int, state: TrainState, metrics: Mapping[str, Any], stopping: bool) -> None:
        """Hooks, then the checkpoint. A checkpoint of step n promises that all lines up to n are written."""
        last = step == self.train.steps
        due = [hook for hook in self.hooks if hook.every and (last or step % hook.every == 0)]
        save = last or stopping or step % self.train.checkpoint_every == 0
        if not due and not save:
            return
        self.log_pending()
        _check_finite(step, metrics, self.checkpointer.latest_step())
        for hook in due:
            values = hook.call(step, state)
            if values:
                self.writer.write(step, values, "evaluations.jsonl")
        if save:
            data = {"seed": self.train.seed, "next_step": step, "examples": step * self.train.batch_size}
            self.checkpointer.save(step, state, data, self.config)
        if due or save:
            # Time spent here is not training time.
            self.logged_step, self.logged_time = step, time.perf_counter()

    def log_pending(self) -> None:
        """Waits for the step that is to be logged, checks it and writes its line."""
        if self.pending is None:
            return
        step, metrics = self.pending
        self.pending = None
        values = jax.device_get(dict(metrics))
        _check_finite(step, values, self.checkpointer.latest_step())
        now = time.perf_counter()
        seconds = (now - self.logged_time) / max(1, step - self.logged_step)
        self.logged_step, self.logged_time = step, now
        timing = {"seconds_per_step": seconds, "images_per_second": self.train.batch_size / seconds}
        self.writer.write(step, {**values, **timing})
        self.progress.show(step, values, seconds)


def _check_finite(step: int, metrics: Mapping[str, Any], saved: int | None) -> None:
    """Raises UserError if the loss or the gradients' norm is not finite."""
    for name in ("loss", "gradient_norm"):
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
