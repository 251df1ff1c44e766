"""`infinity-jax evaluate`: one checkpoint in numbers, as JSON, and as a sheet of generated above real pictures."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from infinity_jax import scales
from infinity_jax.checkpoints.opened import BUNDLED
from infinity_jax.data.batches import eval_batches
from infinity_jax.data.encoded import encode_split
from infinity_jax.data.sources import attribution
from infinity_jax.evaluation import gallery, generation
from infinity_jax.evaluation.through_bits import ThroughBits
from infinity_jax.files import caches, sheets
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
    cfg: tuple[float, ...] | None = None,
    tau: tuple[float, ...] | None = None,
    pruning: str | None = None,
    prompts: int = 256,
    sheet: str | Path | None = None,
) -> dict[str, Any]:
    """Measures a checkpoint and writes the numbers.

    Args:
      json_file: where they go.
      checkpoint: an exported folder or a training workdir; None is the one in the package.
      seed: of the sampled pictures and of the choice of prompts.
      cfg, tau: guidance and temperature, one value or one a scale; default: the checkpoint's own.
      pruning: see `SampleConfig`.
      prompts: train prompts (without skin tone) for retrieval.
      sheet: a PNG to draw, or None.
    Returns:
      what was written.
    """
    started = time.monotonic()
    checkpoint = checkpoint or BUNDLED
    pipeline = InfinityPipeline.from_pretrained(checkpoint)
    settings = pipeline.settings.changed(cfg=cfg, tau=tau, pruning=pruning)
    real = generation.real_pictures(pipeline.model.source, pipeline.model.tokenizer.side)
    chosen = real.choose_prompts(prompts, KID_PICTURES, seed)
    generated = generation.generate(pipeline, real, settings, chosen, seed)

    numbers: dict[str, Any] = {
        **_validation(pipeline, real.validation),
        **_tokenizer_quality(pipeline, real.train, real.validation, chosen),
        **generation.quality(real, generated, prompts),
        **dataclasses.asdict(settings),
        "prompts": min(prompts, len(chosen)),
        "seed": seed,
        "checkpoint": str(checkpoint),
        "seconds": round(time.monotonic() - started, 1),
    }
    path = Path(json_file)
    with caches.writing(path, 4096) as temporary:
        temporary.write_text(json.dumps(numbers, indent=1) + "\n")
    logging.info("wrote %s", path)
    if sheet:
        _draw(Path(sheet), pipeline.model.source, real, generated)
    return numbers


def _validation(pipeline: InfinityPipeline, validation: generation.Split) -> dict[str, Any]:
    """Loss and accuracies under teacher forcing on pictures never trained on."""
    if not validation.captions:
        return {"validation_loss": None, "bit_accuracy": None}
    model = pipeline.model
    split = encode_split(validation.source, model.tokenizer, pipeline.text_encoder)
    schedule = scales.make_schedule(model.tokenizer.scales)
    eval_step = make_eval_step(Transformer(model.config), schedule, model.tokenizer.config)
    metrics = hooks.evaluate_loss(eval_step, model.params, eval_batches(split, _BATCH))
    return {"validation_loss": metrics.pop("loss"), **metrics}


def _tokenizer_quality(
    pipeline: InfinityPipeline,
    train_split: generation.Split,
    validation: generation.Split,
    chosen: np.ndarray,
) -> dict[str, Any]:
    """PSNR on validation pictures; EffNet-KID of reconstructed train pictures against other real ones."""
    through_bits = ThroughBits(pipeline.model.tokenizer)
    others = np.setdiff1d(np.arange(len(train_split.images)), chosen)
    real = gallery.gallery_features(train_split.images)
    kid, error = effnet_kid(gallery.features_of(through_bits(train_split.images[chosen])), real[others])
    psnr = mean_psnr(validation.images, through_bits(validation.images)) if validation.captions else None
    return {"psnr": psnr, "reconstruction_kid": kid, "reconstruction_kid_error": error}


def _draw(path: Path, source: str, real: generation.RealPictures, generated: generation.Generated) -> None:
    """Two sheets, generated above real: train prompts in `path`, held-out compositions beside it."""
    few = generated.chosen[:SHEET_COLUMNS]
    captions = [real.train.captions[i] for i in few]
    parts = [(path, generated.images[: len(few)], real.train.images[few], captions)]
    compositions = real.compositions
    if compositions.captions:
        n = min(SHEET_COLUMNS, len(generated.composed))
        beside = path.with_stem(path.stem + "-compositions")
        parts.append((beside, generated.composed[:n], compositions.images[:n], compositions.captions[:n]))
    for file, made, pictures, captions in parts:
        sheets.comparison_sheet(
            [made, pictures], ["generated", "real"], file, captions=captions, footer=attribution(source)
        )
        logging.info("wrote %s", file)
