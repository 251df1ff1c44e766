"""What the step of a batch computes, told by the batch alone: for the rates in the log."""

import functools
from collections.abc import Callable, Mapping

import numpy as np

from infinity_jax.config import TransformerConfig
from infinity_jax.data.feeds import EncodedFeed, RecordFeed
from infinity_jax.data.scenes.feed import SceneFeed
from infinity_jax.data.scenes.on_device import size_in
from infinity_jax.text.on_device import FEATURES, MASK, TextOnDevice
from infinity_jax.training import flops
from infinity_jax.training.flops import StepCost


def batch_cost(
    model: TransformerConfig, feed: EncodedFeed | RecordFeed | SceneFeed, text: TextOnDevice
) -> Callable[[Mapping[str, np.ndarray], int], StepCost]:
    """Makes the function (rows of a batch that this process reads, pictures of the whole batch) -> the step's cost.

    Texts of other processes may be padded to another length while they are encoded; they count as those here.
    """
    tokenizer = feed.tokenizer.config
    by_size = {schedule.times(tokenizer.patchify).last: schedule for schedule in feed.schedules.values()}

    @functools.cache
    def cost(size: tuple[int, int], tokens: int, encoded: int, pictures: bool, examples: int) -> StepCost:
        encoders = text.encoder.flops(encoded) if encoded else 0
        encoders += flops.encoder_flops(tokenizer, size) if pictures else 0
        return flops.step_cost(model, by_size[size], tokens, examples, encoders)

    def of_batch(batch: Mapping[str, np.ndarray], examples: int) -> StepCost:
        drawn = size_in(batch)
        pictures = "image" in batch or drawn is not None
        height, width = drawn or batch["image" if pictures else "features"].shape[1:3]
        per_token = tokenizer.stride if pictures else 1
        tokens = batch[FEATURES if FEATURES in batch else MASK].shape[1]
        return cost((height // per_token, width // per_token), tokens, text.length(batch), pictures, examples)

    return of_batch
