"""What is done between steps of training: sample sheets, validation."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from infinity_jax.data.feeds import EncodedFeed, RecordFeed
from infinity_jax.files import sheets
from infinity_jax.runtime import global_batch, sharding
from infinity_jax.sampling.pipeline import InfinityPipeline
from infinity_jax.sampling.request import SampleRequest
from infinity_jax.training.state import TrainState, averaged
from infinity_jax.training.transformer_step import make_eval_step, of_ratio
from infinity_jax.transformer.transformer import Transformer

SHEET_PICTURES = 24


def sheet_hook(
    pipeline_of: Callable[[TrainState], InfinityPipeline],
    count: int,
    caption: Callable[[int], str],
    seed: int,
    folder: Path,
) -> Callable[[int, TrainState], None]:
    """A training hook that draws the same few of `count` train captions each time, to see them become better."""
    chosen = np.random.default_rng(seed).permutation(count)[:SHEET_PICTURES]
    captions = [caption(int(i)) for i in chosen]

    def draw(step: int, state: TrainState) -> None:
        # All processes draw, since the parameters lie over all of them; the first one writes.
        request = SampleRequest(captions, range(seed, seed + len(captions)))
        images = pipeline_of(state).arrays(request)
        if jax.process_index() == 0:
            sheets.picture_sheet(images, captions, folder / f"samples-{step:07d}.png", title=f"step {step}")

    return draw


def validation_hook(
    feed: EncodedFeed | RecordFeed,
    model: Transformer,
    batch_size: int,
    layout: sharding.Layout,
    on_device: Callable[[dict[str, Any]], dict[str, Any]],
):
    """Hook: loss and accuracies on the validation split, with the averaged parameters."""
    tokenizer = feed.tokenizer
    by_ratio = of_ratio(
        feed.schedules.values(),
        tokenizer,
        lambda schedule: make_eval_step(model, schedule, tokenizer.config),
    )
    eval_step = jax.jit(layout.traced(by_ratio), out_shardings=layout.replicated)
    placed, rows = layout.batch(batch_size), np.arange(batch_size)

    def step_of(params, batch):
        return eval_step(params, on_device(global_batch.place(batch, rows, batch_size, placed)))

    def evaluate(step: int, state: TrainState) -> dict[str, Any]:
        metrics = evaluate_loss(step_of, averaged(state), feed.eval_batches(batch_size))
        return {f"validation_{name}": value for name, value in metrics.items()}

    return evaluate


def evaluate_loss(eval_step, params, batches: Iterator[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Mean over all pictures of what `make_eval_step` reports: floats and lists of floats; {} without pictures.

    Batches are those of `batches.eval_batches`; every process reads all of them.
    """
    totals, count = {}, 0
    for batch in batches:
        valid = int(batch["valid"].sum())
        metrics = jax.tree.map(lambda x, n=valid: np.asarray(x, np.float64) * n, eval_step(params, batch))
        totals = jax.tree.map(np.add, totals, metrics) if count else metrics
        count += valid
    return jax.tree.map(lambda x: (x / count).tolist(), totals)
