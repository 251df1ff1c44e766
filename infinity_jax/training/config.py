"""The section `train` of a config file."""

import dataclasses
from typing import TypeVar

from infinity_jax.config_files import DURATION, Section, from_dict
from infinity_jax.errors import UserError

Config = TypeVar("Config", bound="TrainConfig")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long and how a run goes; all `*_every` are in steps, 0 means never.

    Attributes:
      steps: length of the run.
      batch_size: examples a step.
      minutes: after so many the run stops with a checkpoint, from which the same command resumes, and in one process
        with a sheet and an evaluation too; 0 is no limit. The learning rate is that of a run of `steps` steps, which
        this may cut short.
      seed: of the data's order and of all random streams.
      log_every: steps between lines of metrics.jsonl.
      checkpoint_every: steps between checkpoints; the last step always has one.
      keep_checkpoints: how many of the newest are kept.
      keep_every: steps between checkpoints that are kept permanently; a multiple of `checkpoint_every`.
      keep_best: a number of the evaluation, like "validation_loss", whose best checkpoint is kept: the smallest if
        one of the words loss, kid, fid, lpips, error is in its name, else the largest; only steps with an evaluation
        and a checkpoint compete. "" is none.
      microbatches: equal parts of a batch whose gradients are taken one after the other and added up, to save memory.
      sample_every: steps between sample sheets.
      sample_prompts: a text file, one prompt a line; sheets show the first 24. "" shows captions of the data:
        up to 12 that are held back for validation, then others.
      evaluate_every: steps between evaluations.
      restore_from: another run's checkpoints to resume from with its optimiser and step, in a new workdir.
      init_from: a workdir, an exported folder or "bundled", of which only the parameters are taken; the run starts at
        step 0.
    """

    steps: int
    batch_size: int
    minutes: float = 0.0
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    keep_every: int = 0
    keep_best: str = ""
    microbatches: int = 1
    sample_every: int = 0
    sample_prompts: str = ""
    evaluate_every: int = 0
    restore_from: str = ""
    init_from: str = ""

    def __post_init__(self):
        positive = (
            "steps",
            "batch_size",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
            "microbatches",
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} is {getattr(self, name)}; it must be at least 1")
        if not self.minutes >= 0:
            raise UserError(f"train.minutes is {self.minutes}; give a number of minutes, or 0 for no limit")
        if self.batch_size % self.microbatches:
            raise UserError(
                f"train.batch_size {self.batch_size} cannot be split into {self.microbatches} equal parts "
                "(train.microbatches); make one a multiple of the other"
            )
        if self.keep_every % self.checkpoint_every:
            near = max(1, round(self.keep_every / self.checkpoint_every)) * self.checkpoint_every
            raise UserError(
                f"train.keep_every is {self.keep_every} steps; it must be a multiple of train.checkpoint_every, "
                f"{self.checkpoint_every}; nearest: {near}"
            )
        if self.keep_best and not self.evaluate_every:
            raise UserError(
                f"train.keep_best {self.keep_best!r} needs evaluations; set train.evaluate_every, best to the same as "
                "train.checkpoint_every"
            )


@dataclasses.dataclass(frozen=True)
class TokenizerTrainConfig(TrainConfig):
    """How long and how a tokenizer's run goes.

    Attributes:
      adversarial: with a discriminator, see `DiscriminatorConfig`.
    """

    adversarial: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.sample_prompts:
            raise UserError(
                f"train.sample_prompts is {self.sample_prompts!r}; a tokenizer draws no prompts, leave it out"
            )
        if self.microbatches != 1:
            raise UserError(
                f"train.microbatches is {self.microbatches}; a tokenizer is trained on whole batches, with 1"
            )


def from_section(section: Section, examples: int, cls: type[Config] = TrainConfig) -> Config:
    """Reads a config file's `train` section, with durations ("2 epochs", "10%") in steps; `examples` make an epoch."""
    values = dict(section)
    size = values.get("batch_size", 0)
    if size < 1:
        raise UserError(f"train.batch_size is {size}; it must be at least 1")
    values["steps"] = in_steps(values["steps"], steps=None, batch_size=size, examples=examples)
    for name in ("log_every", "checkpoint_every", "keep_every", "sample_every", "evaluate_every"):
        if name in values:
            values[name] = in_steps(values[name], steps=values["steps"], batch_size=size, examples=examples)
    return from_dict(cls, values, "train")


def in_steps(duration: int | str, *, steps: int | None, batch_size: int, examples: int) -> int:
    """Converts a duration into training steps, rounded to the nearest, at least 1 unless it is 0.

    Args:
      duration: a number of steps, or text: "500", "500 steps", "10%" (of the run), "2 epochs", "1000 examples".
      steps: length of the run; None while that itself is being read, so that "%" is refused.
      batch_size: examples a step.
      examples: examples an epoch.
    Raises:
      UserError: text of another form, or "%" without `steps`.
    """
    match = DURATION.fullmatch(str(duration))
    if not match or (match[2] == "%" and steps is None):
        raise UserError(
            f"duration {duration!r} is not understood; write it like 500, '500 steps', '2 epochs', '1000 examples'"
            + ("" if steps is None else " or '10%' of the run")
        )
    unit = match[2].rstrip("s")
    one = {
        "": 1.0,
        "step": 1.0,
        "%": (steps or 0) / 100,
        "epoch": examples / batch_size,
        "example": 1 / batch_size,
    }
    number = float(match[1])
    return max(1, round(number * one[unit])) if number else 0
