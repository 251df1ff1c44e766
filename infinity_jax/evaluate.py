"""`infinity-jax evaluate`: one checkpoint in numbers, as JSON, and as a sheet of generated above real pictures."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from infinity_jax import array_files, scales, train
from infinity_jax.data import pictures, sources
from infinity_jax.data.encoded import encode_split
from infinity_jax.data.pipeline import eval_batches
from infinity_jax.errors import UserError
from infinity_jax.evaluation import gallery, sheets
from infinity_jax.evaluation.kid import effnet_kid
from infinity_jax.evaluation.reconstruction import mean_psnr
from infinity_jax.evaluation.retrieval import retrieval
from infinity_jax.evaluation.through_bits import ThroughBits
from infinity_jax.model.transformer import Transformer
from infinity_jax.pipeline import InfinityPipeline
from infinity_jax.sample import attribution
from infinity_jax.train_step import make_eval_step

KID_PICTURES = 1024
FEWEST_PICTURES = 4  # for EffNet-KID
SHEET_COLUMNS = 12
_BATCH = 32


class Split(NamedTuple):
    """One split in memory: uint8 pictures [N,H,W,3] and captions [N]."""

    source: sources.Source
    images: np.ndarray
    captions: list[str]


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
    checkpoint = checkpoint or "bundled"
    pipeline = InfinityPipeline.from_pretrained(checkpoint)
    settings = pipeline.settings.changed(cfg=cfg, tau=tau, pruning=pruning)
    train_split, validation, compositions = (
        _read(pipeline.model.source, split, pipeline.model.tokenizer.side) for split in sources.SPLITS
    )
    chosen = _choose_prompts(train_split.captions, prompts, KID_PICTURES, seed)
    generated = pipeline.arrays(
        [train_split.captions[i] for i in chosen], _seeds(seed, len(chosen)), settings
    )
    composed = np.zeros_like(compositions.images)
    if compositions.captions:
        composed = pipeline.arrays(compositions.captions, _seeds(seed, len(composed)), settings)

    numbers: dict[str, Any] = {
        **_validation(pipeline, validation),
        **_tokenizer_quality(pipeline, train_split, validation, chosen),
        **_generation_quality(train_split, compositions, validation, chosen, generated, composed, prompts),
        **dataclasses.asdict(settings),
        "prompts": min(prompts, len(chosen)),
        "seed": seed,
        "checkpoint": str(checkpoint),
        "seconds": round(time.monotonic() - started, 1),
    }
    path = Path(json_file)
    with array_files.writing(path, 4096) as temporary:
        temporary.write_text(json.dumps(numbers, indent=1) + "\n")
    logging.info("wrote %s", path)
    if sheet:
        _draw(Path(sheet), pipeline.model.source, train_split, compositions, chosen, generated, composed)
    return numbers


def _read(source_name: str, split: str, side: int) -> Split:
    source = sources.open_source(source_name, split)
    records = [source[i] for i in range(len(source))]
    images = pictures.decode_squares(records, side)
    return Split(source, images, [record["caption"] for record in records])


def _choose_prompts(captions: list[str], first: int, total: int, seed: int) -> np.ndarray:
    """Places of `total` different train captions (at most half of them), the `first` ones without a skin tone."""
    order = np.random.default_rng(seed).permutation(len(captions))
    plain = np.array(["skin tone" not in caption for caption in captions])[order]
    start = order[plain][:first]
    rest = order[~np.isin(order, start)]
    chosen = np.concatenate([start, rest])[: max(first, min(total, len(captions) // 2))]
    if len(chosen) < FEWEST_PICTURES or len(captions) - len(chosen) < FEWEST_PICTURES:
        raise UserError(
            f"evaluation compares {len(chosen)} of {len(captions)} training pictures with the others; "
            f"both parts need at least {FEWEST_PICTURES}: use a larger data set or fewer --prompts"
        )
    return chosen


def _seeds(seed: int, n: int) -> list[int]:
    return [seed + i for i in range(n)]


def _validation(pipeline: InfinityPipeline, validation: Split) -> dict[str, Any]:
    """Loss and accuracies under teacher forcing on pictures never trained on."""
    if not validation.captions:
        return {"validation_loss": None, "bit_accuracy": None}
    model = pipeline.model
    split = encode_split(validation.source, model.tokenizer, pipeline.text_encoder)
    schedule = scales.make_schedule(model.tokenizer.scales)
    eval_step = make_eval_step(Transformer(model.config), schedule, model.tokenizer.config)
    metrics = train.evaluate_loss(eval_step, model.params, eval_batches(split, _BATCH))
    return {"validation_loss": metrics.pop("loss"), **metrics}


def _tokenizer_quality(
    pipeline: InfinityPipeline, train_split: Split, validation: Split, chosen: np.ndarray
) -> dict[str, Any]:
    """PSNR on validation pictures; EffNet-KID of reconstructed train pictures against other real ones."""
    through_bits = ThroughBits(pipeline.model.tokenizer)
    others = np.setdiff1d(np.arange(len(train_split.images)), chosen)
    real = gallery.gallery_features(train_split.images)
    kid, error = effnet_kid(gallery.features_of(through_bits(train_split.images[chosen])), real[others])
    psnr = mean_psnr(validation.images, through_bits(validation.images)) if validation.captions else None
    return {"psnr": psnr, "reconstruction_kid": kid, "reconstruction_kid_error": error}


def _generation_quality(
    train_split: Split,
    compositions: Split,
    validation: Split,
    chosen: np.ndarray,
    generated: np.ndarray,
    composed: np.ndarray,
    prompts: int,
) -> dict[str, Any]:
    """EffNet-KID beside real against real, and retrieval among all pictures of all splits."""
    real = gallery.gallery_features(train_split.images)
    everything = np.concatenate(
        [real, *(gallery.gallery_features(s.images) for s in (compositions, validation) if s.captions)]
    )
    features = gallery.features_of(generated)
    others = np.setdiff1d(np.arange(len(real)), chosen)
    kid, error = effnet_kid(features, real[others])
    real_kid, real_error = effnet_kid(real[chosen], real[others])
    found = retrieval(features[:prompts], everything, chosen[:prompts])
    numbers = {
        "kid": kid,
        "kid_error": error,
        "real_kid": real_kid,
        "real_kid_error": real_error,
        "kid_pictures": len(chosen),
        "retrieval_top1": found["top1"],
        "retrieval_top5": found["top5"],
        "retrieval_gallery": len(everything),
        "retrieval_compositions_top1": None,
        "retrieval_compositions_top5": None,
    }
    if compositions.captions:
        places = np.arange(len(real), len(real) + len(compositions.captions))
        found = retrieval(gallery.features_of(composed), everything, places)
        numbers |= {f"retrieval_compositions_{name}": value for name, value in found.items()}
    return numbers


def _draw(
    path: Path,
    source: str,
    train_split: Split,
    compositions: Split,
    chosen,
    generated: np.ndarray,
    composed: np.ndarray,
) -> None:
    """Two sheets, generated above real: train prompts in `path`, held-out compositions beside it."""
    few = chosen[:SHEET_COLUMNS]
    parts = [(path, generated[: len(few)], train_split.images[few], [train_split.captions[i] for i in few])]
    if compositions.captions:
        n = min(SHEET_COLUMNS, len(composed))
        beside = path.with_stem(path.stem + "-compositions")
        parts.append((beside, composed[:n], compositions.images[:n], compositions.captions[:n]))
    for file, made, real, captions in parts:
        sheets.comparison_sheet(
            [made, real], ["generated", "real"], file, captions=captions, footer=attribution(source)
        )
        logging.info("wrote %s", file)
