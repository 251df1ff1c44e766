"""The section `train` of a config file."""

import dataclasses
from typing import Annotated, TypeVar

from infinity_jax.config_files import DURATION, Section, from_dict
from infinity_jax.errors import UserError
from infinity_jax.fields import MOST, Checked, Count, FilePath, Range, Seed, Unlimited, WholeNumber, check
from infinity_jax.training import profile

# Keys of config files that are numbers of steps or text, see `in_steps`.
DURATIONS = (
    *("steps", "log_every", "checkpoint_every", "keep_every", "sample_every", "evaluate_every"),
    *("start_step", "ramp_steps"),
)
Config = TypeVar("Config", bound="TrainConfig")


@dataclasses.dataclass(frozen=True)
class TrainConfig(Checked):
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
      most_skipped: a step whose gradient is not finite is skipped: it changes no parameter and is counted. So many of
        them in a row end the run; 1 ends it at the first.
      microbatches: equal parts of a batch whose gradients are taken one after the other and added up, to save memory.
      sample_every: steps between sample sheets.
      sample_prompts: a text file, one prompt a line; sheets show the first 24. "" shows captions of the data:
        up to 12 that are held back for validation, then others.
      evaluate_every: steps between evaluations.
      profile: "START:STOP", the first and the last step of a trace for xprof, written into the workdir's profile/; ""
        writes none.
      restore_from: another run's checkpoints to resume from with its optimiser and step, in a new workdir.
      init_from: a workdir, an exported folder or "bundled", of which only the parameters are taken; the run starts at
        step 0.
    """

    steps: Annotated[int, Range(1, 10**7)]
    batch_size: Annotated[int, Range(1, 2**24)]
    minutes: Annotated[float, Range(0, 10**6)] = 0.0
    seed: Seed = 0
    log_every: Count = 50
    checkpoint_every: Count = 500
    keep_checkpoints: Count = 2
    keep_every: WholeNumber = 0
    keep_best: Annotated[str, Unlimited("a number of the evaluation, or nothing")] = ""
    most_skipped: Annotated[int, Range(1, 10**6)] = 10
    microbatches: Annotated[int, Range(1, 2**24)] = 1
    sample_every: WholeNumber = 0
    sample_prompts: FilePath = ""
    evaluate_every: WholeNumber = 0
    profile: Annotated[str, Unlimited("START:STOP, or nothing")] = ""
    restore_from: FilePath = ""
    init_from: FilePath = ""

    def __post_init__(self):
        super().__post_init__()
        profile.steps_of(self.profile)
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


def check_best(train: TrainConfig, source: str, validation: int) -> None:
    """Raises UserError where the best checkpoint is to be kept and the data has no pictures to evaluate on."""
    if train.keep_best and not validation:
        raise UserError(
            f"train.keep_best {train.keep_best!r} needs a validation split, and {source!r} has none; leave it out"
        )


def from_section(section: Section, examples: int, cls: type[Config] = TrainConfig) -> Config:
    """Reads a config file's `train` section, with durations ("2 epochs", "10%") in steps; `examples` make an epoch."""
    values = dict(section)
    if missing := {"steps", "batch_size"} - values.keys():
        raise UserError(f"train lacks the key {min(missing)}; add it")
    size = values["batch_size"]
    check(cls, {"batch_size": size}, "train")
    values["steps"] = in_steps(values["steps"], steps=None, batch_size=size, examples=examples)
    for name in DURATIONS:
        if name in values and name != "steps":
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
    return max(1, round(min(number * one[unit], 2 * MOST))) if number else 0
