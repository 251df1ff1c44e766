"""The training loop of both models.

Order within the loop: save -> next(batch) -> encode -> step -> log the previously logged step's metrics. The host
asks the device for numbers only one step late, so it never waits for the device while there is work to queue: what
encodes the next batch is queued while the step before still runs.
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

from infinity_jax.checkpoints.run import Checkpointer
from infinity_jax.errors import UserError
from infinity_jax.files.progress import Progress, in_words, speaks
from infinity_jax.runtime import global_batch, kept_programs, stop_signals
from infinity_jax.runtime.compiled_step import BatchShapes, CompiledStep
from infinity_jax.runtime.sharding import Layout
from infinity_jax.training import finite, start
from infinity_jax.training.config import TrainConfig
from infinity_jax.training.flops import StepCost
from infinity_jax.training.goodput import Account
from infinity_jax.training.profile import Profile
from infinity_jax.training.run_log import MetricsWriter
from infinity_jax.training.state import StepFunction, TrainState, TrainStep

# By so many steps the time of a run is estimated, and said if it is so many seconds.
_MEASURED_STEPS, _WORTH_SAYING = 4, 20.0
Batch = Mapping[str, np.ndarray]
RowsOf = Callable[[int], np.ndarray]
Placed = Callable[[Batch, np.ndarray, int, jax.sharding.Sharding], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run reads.

    Attributes:
      batches: told the first step (0-based) and, for any batch size, the rows that this process reads of such a batch,
        gives those rows of the batches from there on, dicts of numpy arrays.
      examples_before: step (0-based) -> examples of all batches before it.
      placed: lays the rows that this process has read out over all devices; arguments as of `global_batch.put`.
      cost: (rows of a batch, examples of the whole one) -> what its step computes, see `StepCost`; None is unknown.
      on_device: what is made of each batch on the devices before the step sees it.
      prepare: compiles what `on_device` runs, and gives the arrays of each kind of batch that the step will see, whose
        programs are compiled before the first step. Others are at their first use.
    """

    batches: Callable[[int, RowsOf], Iterator[Batch]]
    examples_before: Callable[[int], int]
    placed: Placed = lambda *batch: global_batch.put(*batch)
    on_device: Callable[[dict[str, jax.Array]], dict[str, jax.Array]] = lambda batch: batch
    cost: Callable[[Batch, int], StepCost | None] = lambda batch, size: None
    prepare: Callable[[], Sequence[BatchShapes]] = tuple


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
    step: TrainStep,
    data: Data,
    config: Mapping[str, Any],
    hooks: Sequence[Hook] = (),
    *,
    load_params: Callable[[str, Any], Any],
) -> TrainState:
    """Trains to `train.steps`, from the newest complete checkpoint of `workdir` if there is one.

    Of several processes all run this alike; only the first writes metrics.

    Args:
      workdir: gets checkpoints/, metrics.jsonl, evaluations.jsonl and tensorboard/.
      step: the step, compiled here, and how its state begins.
      config: the whole config as plain dicts, stored in every checkpoint.
      hooks: sample sheets and evaluations; run before the checkpoint of the same step.
      load_params: (path, params like those wanted) -> params, for `train.init_from`.
    Returns:
      the last state.
    Raises:
      UserError: `train.most_skipped` steps in a row were skipped; a number of a step that was not is not finite; a full
        disk; a checkpoint of another model or another seed.
      SystemExit: after SIGTERM or `train.minutes` (code 0) or SIGINT (130), once a checkpoint is saved.
    """
    checkpointer = Checkpointer(
        Path(workdir) / "checkpoints", train.keep_checkpoints, train.keep_every, train.keep_best
    )
    account = Account()
    with account.spent("start"):
        state = start.first_state(checkpointer, train, step, load_params, data.examples_before)
    first = int(state.step)
    if first >= train.steps:
        logging.info("the run already has its %d steps; raise train.steps to train further", train.steps)
        checkpointer.close()
        return state
    # A shorter run's last line stands outside the rhythm of log_every; a run that resumes has no such line.
    writer = MetricsWriter(workdir, first if first % train.log_every == 0 else first - 1)
    with contextlib.closing(checkpointer), contextlib.closing(writer):
        step_fn = CompiledStep(step.jitted(), kept_programs.of_run(Path(workdir), step.layout).compiler())
        with account.spent("compile"):
            step_fn.prepare(step.state_shapes(), data.prepare(), step.key_shape())
        watch = account, Profile(train.profile, Path(workdir))
        return _Loop(train, step_fn, step.layout, data, checkpointer, writer, hooks, config, *watch).run(
            state
        )


@dataclasses.dataclass(frozen=True)
class _Loop:
    """One run's fixed parts, so that each part of the loop is a short method."""

    train: TrainConfig
    step_fn: StepFunction
    layout: Layout
    data: Data
    checkpointer: Checkpointer
    writer: MetricsWriter
    hooks: Sequence[Hook]
    config: Mapping[str, Any]
    account: Account = dataclasses.field(default_factory=Account)
    profile: Profile = dataclasses.field(default_factory=Profile)

    def run(self, state: TrainState) -> TrainState:
        train, first = self.train, int(state.step)
        seed_key = jax.jit(lambda: jax.random.key(train.seed), out_shardings=self.layout.replicated)()
        sharding_of = functools.cache(self.layout.batch)
        rows_of = functools.cache(lambda size: global_batch.rows_here(sharding_of(size), size))
        examples_before, account, profile = self.data.examples_before, self.account, self.profile
        log = _Log(self, first)
        with (
            stop_signals.received(train.minutes) as stop_asked,
            contextlib.closing(log.progress),
            contextlib.closing(profile),
            contextlib.ExitStack() as at_end,
        ):
            stream = self.data.batches(first, rows_of)
            # It may hold threads, and then can be closed.
            at_end.callback(getattr(stream, "close", lambda: None))
            stop = None
            for step in range(first + 1, train.steps + 1):
                with account.spent("data"):
                    batch = next(stream, None)
                if batch is None:
                    raise UserError(f"the data ended before step {step}; it needs at least one batch")
                size = examples_before(step) - examples_before(step - 1)
                account.took(self.data.cost(batch, size))
                with account.spent("text"):
                    batch = self.data.placed(batch, rows_of(size), size, sharding_of(size))
                with account.spent("pictures"):
                    batch = self.data.on_device(batch)
                profile.before(step)
                with account.queueing(batch), jax.transfer_guard("disallow"):
                    state, metrics = self.step_fn(state, batch, seed_key)
                account.queued(metrics)
                profile.after(step, metrics)
                log.taken(step, metrics)
                stop = stop_asked()
                self.after_step(step, state, metrics, log, stop)
                log.progress.advance(line=False)
                if stop is not None:
                    break
            self.checkpointer.wait()
            # Also after the last step, which another run may follow: the next stage.
            stop = stop or stop_asked()
            if stop is not None:
                logging.warning("stopped at step %d, saved; the same command resumes there", int(state.step))
                raise SystemExit(130 if stop == signal.SIGINT else 0)
        return state

    def after_step(
        self, step: int, state: TrainState, metrics: Mapping[str, Any], log: "_Log", stop: int | None
    ) -> None:
        """Runs hooks, then saves. A checkpoint of step n promises that all lines up to n are written."""
        self.checkpointer.check()
        # Where the time is over, and nobody waits for the end, what was made is shown and measured.
        last = step == self.train.steps or stop == signal.SIGALRM
        due = [hook for hook in self.hooks if hook.every and (last or step % hook.every == 0)]
        save = last or stop is not None or step % self.train.checkpoint_every == 0
        if not due and not save:
            return
        log.write_pending()
        log.skips.check()
        finite.check_metrics(step, jax.device_get(dict(metrics)), self.checkpointer)
        evaluated: dict[str, Any] = {}
        with self.account.spent("hooks"):
            for hook in due:
                values = hook.call(step, state)
                if values:
                    self.writer.write(step, values, "evaluations.jsonl")
                    evaluated |= values
        if save:
            finite.check_state(step, state, self.checkpointer)
            examples = self.data.examples_before(step)
            data = {"seed": self.train.seed, "next_step": step, "examples": examples}
            with self.account.spent("checkpoints"):
                self.checkpointer.save(step, state, data, self.config, self.judged_by(evaluated))
        # Time spent here is not training time.
        log.count_time_from(step)

    def judged_by(self, evaluated: Mapping[str, Any]) -> dict[str, float] | None:
        """Picks the numbers of an evaluation; UserError if `train.keep_best` is not among them."""
        numbers = {name: float(value) for name, value in evaluated.items() if isinstance(value, (int, float))}
        best = self.train.keep_best
        if best and numbers and best not in numbers:
            raise UserError(f"train.keep_best {best!r} is not evaluated; use one of {', '.join(numbers)}")
        return numbers or None


class _Log:
    """Lines of metrics.jsonl and the progress bar, each a step late: numbers are awaited once more work is queued."""

    def __init__(self, loop: _Loop, first: int):
        self._loop, self.progress = loop, Progress("training", loop.train.steps, "step", first)
        # (step, metrics on the device) of a step that is to be logged but not yet waited for.
        self._pending: tuple[int, Mapping[str, Any]] | None = None
        self.skips = finite.SkipWatch(loop.train.most_skipped, loop.checkpointer)
        self._begin, self._begun, self._measured_from = first, time.perf_counter(), 0.0
        self.count_time_from(first)

    def taken(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the line of the step before, and keeps this one's metrics if they are to be logged."""
        self.write_pending()
        self.skips.taken(step, metrics)
        self._expect(step, metrics)
        if step % self._loop.train.log_every == 0 or step == self._loop.train.steps:
            self._pending = (step, metrics)

    def _expect(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Says once how long the run will take, by its first steps without the one that waits for the compiler."""
        taken = step - self._begin
        if taken not in (1, 1 + _MEASURED_STEPS):
            return
        jax.block_until_ready(metrics)
        if taken == 1:
            self._measured_from = time.perf_counter()
            return
        seconds = (time.perf_counter() - self._measured_from) / _MEASURED_STEPS
        self._foresee_end(step, seconds)
        steps = self._loop.train.steps - step
        if steps * seconds >= _WORTH_SAYING and speaks():
            logging.info(
                "%.3g s a step: about %s for the %d steps left", seconds, in_words(steps * seconds), steps
            )

    def write_pending(self) -> None:
        """Waits for the step that is to be logged, checks it and writes its line."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = jax.device_get(dict(metrics))
        finite.check_metrics(step, values, self._loop.checkpointer)
        examples_before = self._loop.data.examples_before
        examples = examples_before(step) - examples_before(self._first)
        timing = self._loop.account.line(max(1, step - self._first), examples)
        steady, self._first = self._first > self._begin, step
        self._loop.writer.write(step, {**values, **timing})
        self.progress.show(step, values, timing["seconds_per_step"], steady)

    def _foresee_end(self, step: int, seconds: float) -> None:
        """Says where `train.minutes` will end the run, if that is before its last step."""
        train, passed = self._loop.train, time.perf_counter() - self._begun
        last = step + int((60 * train.minutes - passed) / seconds)
        if train.minutes and last < train.steps:
            logging.warning(
                "%g minutes end this run near step %d of %d, where the learning rate is still high; the same command "
                "resumes it, or a new run with --config.train.steps=%d ends in that time with its rate",
                *(train.minutes, last, train.steps, last),
            )

    def count_time_from(self, step: int) -> None:
        """Starts the clock of the numbers that are logged next."""
        self._first = step
        self._loop.account.count_from_here()
