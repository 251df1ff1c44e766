"""What is done between steps of training: validation, and sheets of pictures to look at."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from infinity_jax.checkpoints.trained import TrainedModel
from infinity_jax.data import batches, pictures, sources
from infinity_jax.data.resolutions import PictureConfig
from infinity_jax.files import sheets
from infinity_jax.metrics.psnr import mean_psnr
from infinity_jax.runtime import global_batch, sharding
from infinity_jax.sampling.pipeline import InfinityPipeline
from infinity_jax.sampling.request import SampleRequest
from infinity_jax.scales import ScaleSchedule
from infinity_jax.text.prompt import read_prompts
from infinity_jax.tokenizer.model import Tokenizer, reconstruct
from infinity_jax.training.config import TrainConfig
from infinity_jax.training.loop import Hook, Placed
from infinity_jax.training.run_config import Feed, RunConfig
from infinity_jax.training.state import TrainState, averaged
from infinity_jax.training.transformer_step import make_eval_step, of_ratio
from infinity_jax.transformer.transformer import Transformer

SHEET_PICTURES, SHEET_RECONSTRUCTIONS = 24, 12

ToFeatures = Callable[[dict[str, Any]], dict[str, Any]]


def sample_sheet(run: RunConfig, feed: Feed, folder: Path) -> Callable[[int, TrainState], None]:
    """Makes the hook that draws the same few prompts each time, to see them become better.

    They are those of the file `train.sample_prompts`, else captions: held back ones, then ones that are trained on.
    """
    seed, file = run.train.seed, run.train.sample_prompts
    if file:
        captions, title = read_prompts(file)[:SHEET_PICTURES], "step {}"
    else:
        captions, held = sheet_captions(feed.caption, len(feed.held_back), len(run.source), seed)
        title = (
            f"step {{}}: the first {held} are captions of pictures that are held back" if held else "step {}"
        )

    def draw(step: int, state: TrainState) -> None:
        trained = TrainedModel(
            tokenizer=feed.tokenizer,
            config=run.model,
            params=averaged(state),
            text=run.text,
            source=run.data.source,
            sample=dataclasses.asdict(run.sample),
            origin={},
        )
        # All processes draw, since the parameters lie over all of them; the first one writes.
        pipeline = InfinityPipeline(trained, feed.text_encoder, run.layout)
        images = pipeline.arrays(SampleRequest(captions, range(seed, seed + len(captions))))
        if jax.process_index() == 0:
            sheets.picture_sheet(
                images, captions, folder / f"samples-{step:07d}.png", title=title.format(step)
            )

    return draw


def sheet_captions(
    caption_of: Callable[[int, bool], str], held_back: int, examples: int, seed: int
) -> tuple[list[str], int]:
    """Chooses captions for a sheet: half of them held back where there are such, none twice.

    Args:
      caption_of: (number of a picture, whether it is one that is held back) -> its caption.
      held_back, examples: how many pictures there are of both kinds.
    Returns:
      the captions, and how many of them, the first ones, are held back.
    """
    captions: list[str] = []
    counts: list[int] = []
    for kept, count, most in ((True, held_back, SHEET_PICTURES // 2), (False, examples, SHEET_PICTURES)):
        # A few more than are needed, as several pictures may have one caption.
        for place in np.random.default_rng(seed).permutation(count)[: 4 * SHEET_PICTURES]:
            caption = caption_of(int(place), kept)
            if len(captions) < most and caption not in captions:
                captions.append(caption)
        counts.append(len(captions))
    return captions, counts[0]


def validation(
    run: RunConfig, feed: Feed, placed: Placed, to_features: ToFeatures
) -> Callable[[int, TrainState], dict[str, Any]]:
    """Makes the hook that measures loss and accuracies on the validation split, with the averaged parameters.

    Args:
      placed: lays batches out, see `loop.Data`.
      to_features: that of `encoded.FeaturesOnDevice`.
    """
    tokenizer, layout, model = feed.tokenizer.config, run.layout, Transformer(run.model)
    by_ratio = of_ratio(
        feed.schedules.values(),
        tokenizer.patchify,
        lambda schedule: make_eval_step(
            model, schedule, tokenizer, feed.tokenizer.quantizer(schedule.n_scales)
        ),
    )
    eval_step = jax.jit(layout.traced(by_ratio), out_shardings=layout.replicated)
    # One microbatch at a time: more may not fit.
    size = run.train.batch_size // run.train.microbatches
    sharding_of_batch, rows = layout.batch(size), np.arange(size)

    def step_of(params, batch):
        return eval_step(params, to_features(placed(batch, rows, size, sharding_of_batch)))

    def evaluate(step: int, state: TrainState) -> dict[str, Any]:
        metrics = evaluate_loss(step_of, averaged(state), feed.eval_batches(size))
        return {f"validation_{name}": value for name, value in metrics.items()}

    return evaluate


def evaluate_loss(eval_step, params, batches: Iterator[Mapping[str, np.ndarray]]) -> dict[str, Any]:
    """Takes the mean over all pictures of what `make_eval_step` reports.

    Args:
      eval_step: (params, batch) -> metrics, each a mean over the batch's valid pictures.
      params: of the model.
      batches: those of `batches.eval_batches`; every process reads all of them.
    Returns:
      floats and lists of floats; {} without pictures.
    """
    totals, count = {}, 0
    for batch in batches:
        valid = int(batch["valid"].sum())
        metrics = jax.tree.map(lambda x, n=valid: np.asarray(x, np.float64) * n, eval_step(params, batch))
        totals = jax.tree.map(np.add, totals, metrics) if count else metrics
        count += valid
    return jax.tree.map(lambda x: (x / count).tolist(), totals)


def tokenizer_hooks(
    tokenizer: Tokenizer,
    schedule: ScaleSchedule,
    data: PictureConfig,
    train: TrainConfig,
    layout: sharding.Layout,
    workdir: Path,
) -> list[Hook]:
    """Plans a tokenizer's validation PSNR and sheets of originals above reconstructions, by averaged parameters.

    Args:
      schedule: the scales that it is judged with, in its own tokens.
      data: of its source the validation split is used; without one there are no hooks.
      workdir: gets the sheets, in samples/.
    """
    validation = sources.open_source(data.source, "validation")
    if len(validation) == 0:
        return []
    size, sharding_of_batch = train.batch_size, layout.batch(train.batch_size)
    height, width = (n * tokenizer.config.stride for n in schedule.last)

    def decode(record):
        return {"image": pictures.decode(record["image"], height, width, data.fit)}

    jitted = jax.jit(
        layout.traced(lambda params, image: reconstruct(tokenizer, params, image, schedule)),
        out_shardings=layout.replicated,
    )

    def through_bits(state: TrainState, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Validation pictures uint8 [N,H,W,3] and their reconstructions, of the first `most` batches or of all."""
        pairs = []
        for batch in itertools.islice(batches.eval_batches(validation, size, decode), most):
            image = {"image": pictures.to_float(batch["image"])}
            image = global_batch.put(image, np.arange(size), size, sharding_of_batch)["image"]
            made = pictures.to_uint8(np.asarray(jitted(averaged(state), image)))
            pairs.append((batch["image"][batch["valid"]], made[batch["valid"]]))
        original, reconstruction = (np.concatenate(part) for part in zip(*pairs, strict=True))
        return original, reconstruction

    def evaluate(step: int, state: TrainState) -> dict[str, float]:
        return {"validation_psnr": mean_psnr(*through_bits(state))}

    def draw(step: int, state: TrainState) -> None:
        pair = through_bits(state, -(-SHEET_RECONSTRUCTIONS // size))
        if jax.process_index() == 0:
            sheets.comparison_sheet(
                [images[:SHEET_RECONSTRUCTIONS] for images in pair],
                ["original", "reconstruction"],
                workdir / "samples" / f"reconstruction-{step:07d}.png",
                title=f"step {step}",
            )

    return [Hook(train.evaluate_every, evaluate), Hook(train.sample_every, draw)]
