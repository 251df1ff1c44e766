"""What a run says before it begins."""

from pathlib import Path

from absl import logging

from infinity_jax.files.progress import speaks
from infinity_jax.training.config import TrainConfig


def say(
    what: str, parameters: int, pictures: tuple[int, int], train: TrainConfig, workdir: str | Path
) -> None:
    """Logs the size of a run in one line, from the process that speaks.

    Args:
      what: is trained, like "a transformer".
      pictures: of the train and of the validation split.
      train: its length.
      workdir: where it goes.
    """
    if not speaks():
        return
    count, validation = pictures
    logging.info(
        "training %s of %s parameters on %s pictures (%s for validation): %s steps of %s pictures, %.3g times each; "
        "a checkpoint every %s steps, in %s",
        *(what, f"{parameters:,}", f"{count:,}", f"{validation:,}" if validation else "none"),
        *(f"{train.steps:,}", f"{train.batch_size:,}", train.steps * train.batch_size / count),
        *(f"{train.checkpoint_every:,}", workdir),
    )
