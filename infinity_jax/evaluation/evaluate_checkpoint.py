"""`infinity-jax evaluate`: one checkpoint in numbers, as JSON, and as a sheet of generated above real pictures."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from infinity_jax import scales
from infinity_jax.checkpoints.opened import BUNDLED
from infinity_jax.data import sources
from infinity_jax.data.batches import eval_batches
from infinity_jax.data.encoded import encode_split
from infinity_jax.data.scenes.source import NAME as SCENES
from infinity_jax.data.scenes.source import SceneSource
from infinity_jax.data.through_bits import ThroughBits
from infinity_jax.evaluation import generation, main_numbers
from infinity_jax.evaluation.scenes import accuracy, benchmark, judge
from infinity_jax.files import atomic, sheets
from infinity_jax.metrics.kid import effnet_kid
from infinity_jax.metrics.psnr import mean_psnr
from infinity_jax.sampling.pipeline import InfinityPipeline
from infinity_jax.training import hooks
from infinity_jax.training.transformer_step import make_eval_step
from infinity_jax.transformer.transformer import Transformer

KID_PICTURES = 1024
SHEET_COLUMNS = 12
_BATCH = 32


def main(
    json_file: str | Path,
    checkpoint: str | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    prompts: int = 256,
    sheet: str | Path | None = None,
    data: str | None = None,
) -> dict[str, Any]:
    """Measures a checkpoint and writes the numbers.

    Args:
      json_file: where they go.
      checkpoint: an exported folder or a training workdir; None is the one in the package.
      seed: of the sampled pictures and of the choice of prompts.
      settings: values of fields of `SampleConfig`; the others, and those that are None, are the checkpoint's own.
      prompts: train prompts for retrieval, of pictures without look-alikes.
      sheet: a PNG to draw, or None.
      data: the data set, as `data.source`; None is the one that the checkpoint was trained on.
    Raises:
      UserError: `json_file` cannot be written, or the checkpoint, its data set or a setting is wrong.
    """
    started = time.monotonic()
    json_file, checkpoint = Path(json_file), checkpoint or BUNDLED
    for file, option in ((json_file, "--json"), (sheet, "--sheet")):
        if file:
            atomic.check_target(Path(file), option, checkpoint)
    pipeline = InfinityPipeline.from_pretrained(checkpoint)
    chosen_settings = pipeline.settings.changed(**settings or {})
    model = pipeline.model
    source = data or model.source
    real = generation.real_pictures(source, model.tokenizer.side, sources.fit_of(model.origin))
    chosen = real.choose_prompts(prompts, KID_PICTURES, seed)
    generated = generation.generate(pipeline, real, chosen_settings, chosen, seed)

    numbers: dict[str, Any] = {
        **_validation(pipeline, real.validation),
        **_tokenizer_quality(pipeline, real.train, real.validation, chosen),
        **generation.quality(real, generated, prompts),
        **(_scenes(real, generated) if source == SCENES else {}),
        **dataclasses.asdict(chosen_settings),
        "prompts": min(prompts, len(chosen)),
        "seed": seed,
        "checkpoint": str(checkpoint),
        "seconds": round(time.monotonic() - started, 1),
    }
    atomic.write_json(json_file, numbers)
    logging.info("wrote %s", json_file)
    print(main_numbers.as_text(numbers, main_numbers.CHECKPOINT))
    if sheet:
        _draw(Path(sheet), pipeline.model.trained_on, real, generated)
    return numbers


def _validation(pipeline: InfinityPipeline, validation: generation.Split) -> dict[str, Any]:
    """Measures loss and accuracies under teacher forcing on pictures never trained on."""
    if not validation.captions:
        return {"validation_loss": None, "bit_accuracy": None}
    model = pipeline.model
    split = encode_split(
        validation.source, model.tokenizer, pipeline.text_encoder, sources.fit_of(model.origin)
    )
    schedule = scales.make_schedule(model.tokenizer.scales)
    quantizer = model.tokenizer.quantizer(schedule.n_scales)
    eval_step = make_eval_step(Transformer(model.config), schedule, model.tokenizer.config, quantizer)
    metrics = hooks.evaluate_loss(eval_step, model.params, eval_batches(split, _BATCH))
    return {"validation_loss": metrics.pop("loss"), **metrics}


def _tokenizer_quality(
    pipeline: InfinityPipeline,
    train_split: generation.Split,
    validation: generation.Split,
    chosen: np.ndarray,
) -> dict[str, Any]:
    """Measures PSNR on validation pictures, and EffNet-KID of reconstructed train pictures against other real ones."""
    through_bits = ThroughBits(pipeline.model.tokenizer)
    unchosen = np.setdiff1d(np.arange(len(train_split.images)), chosen)
    real = generation.gallery_features(train_split.images)
    kid, error = effnet_kid(generation.features_of(through_bits(train_split.images[chosen])), real[unchosen])
    psnr = mean_psnr(validation.images, through_bits(validation.images)) if validation.captions else None
    return {"psnr": psnr, "reconstruction_kid": kid, "reconstruction_kid_error": error}


def _scenes(real: generation.RealPictures, generated: generation.Generated) -> dict[str, Any]:
    """Judges drawn scenes. Many pictures are right for a caption, so the nearest real one says nothing."""
    train, compositions = SceneSource("train"), SceneSource("compositions")
    asked = {
        "seen": ([train.scene(i) for i in generated.chosen.tolist()], generated.images),
        "unseen": ([compositions.scene(i) for i in range(len(generated.composed))], generated.composed),
    }
    report = {kind: accuracy.summary(scenes, judge.look(images)) for kind, (scenes, images) in asked.items()}
    print(benchmark.as_text(report))
    retrieval = ("retrieval_top1", "retrieval_top5", "retrieval_gallery")
    compositions = ("retrieval_compositions_top1", "retrieval_compositions_top5")
    return {"scenes": report, **dict.fromkeys((*retrieval, *compositions))}


def _draw(
    path: Path, trained_on: list[str], real: generation.RealPictures, generated: generation.Generated
) -> None:
    """Draws two sheets, generated above real: train prompts in `path`, held-out compositions beside it."""
    few = generated.chosen[:SHEET_COLUMNS]
    captions = [real.train.captions[i] for i in few]
    parts = [(path, generated.images[: len(few)], real.train.images[few], captions)]
    compositions = real.compositions
    if compositions.captions:
        n = min(SHEET_COLUMNS, len(generated.composed))
        beside = path.with_stem(path.stem + "-compositions")
        parts.append((beside, generated.composed[:n], compositions.images[:n], compositions.captions[:n]))
    for file, generated_images, pictures, captions in parts:
        sheets.comparison_sheet(
            [generated_images, pictures],
            ["generated", "real"],
            file,
            captions=captions,
            footer=sources.attribution(trained_on),
        )
        logging.info("wrote %s", file)
