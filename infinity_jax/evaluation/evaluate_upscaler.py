"""`infinity-jax evaluate-upscaler`: large pictures beside the true ones, bicubic ones and the tokenizer's own."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import UInt8
from PIL import Image

from infinity_jax.checkpoints.origin import data_of
from infinity_jax.config_files import from_dict
from infinity_jax.data import pictures, sources
from infinity_jax.data.degradation.process import CLEAN, DegradationConfig, degrade
from infinity_jax.data.through_bits import ThroughBits
from infinity_jax.errors import UserError
from infinity_jax.evaluation import generation
from infinity_jax.files import atomic, sheets
from infinity_jax.metrics import bootstrap, lpips
from infinity_jax.metrics.kid import FEWEST, effnet_kid
from infinity_jax.metrics.psnr import psnr_per_picture
from infinity_jax.metrics.ssim import ssim_per_picture
from infinity_jax.sampling.upscaling import UpscalePipeline, UpscaleRequest

PICTURES, OTHERS = 200, 2000
# Places of the pictures, which decide how each is spoiled; no picture that is trained on has one of these.
PLACES = 2**41
_COLUMNS = ("psnr", "ssim", "lpips", "kid", "consistency")
_SHEET = 8

Images = UInt8[np.ndarray, "N _ _ 3"]


class HeldBack(NamedTuple):
    """Pictures that nothing was trained on, and others to compare sets with.

    Attributes:
      true: uint8 [N,H,W,3], sharpened where the degradation says so; low: uint8 [N,h,w,3].
      captions: N texts.
      others: features float32 of train pictures.
    """

    true: Images
    low: Images
    captions: list[str]
    others: np.ndarray


def main(
    json_file: str | Path,
    checkpoint: str,
    data: str | None = None,
    clean: bool = False,
    settings: Mapping[str, Any] | None = None,
    sheet: str | Path | None = None,
    n_pictures: int = PICTURES,
    lpips_weights: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Measures an upscaler and writes the numbers.

    Args:
      json_file: where they go.
      checkpoint: a workdir of `train-upscaler`, or a folder that was exported of one.
      data: a name that `data.sources` knows; None is what the upscaler was trained on.
      clean: pictures are made small bicubically, else as in training.
      settings: values of fields of `SampleConfig`; the others are the checkpoint's own.
      sheet: a PNG to draw, or None.
      n_pictures: at most so many pictures.
      lpips_weights: see `evaluate_tokenizer.main`; without them there is no "lpips".
    Returns:
      of "bicubic", "tokenizer" (the true pictures through the bits: no upscaler can be better) and "upscaled" what
      `measured` gives.
    Raises:
      UserError: a file or the data is not as it must be.
    """
    started, json_file = time.monotonic(), Path(json_file)
    for file, option in ((json_file, "--json"), (sheet, "--sheet")):
        if file:
            atomic.check_target(Path(file), option, checkpoint, *(lpips_weights or ()))
    judge = lpips.find_lpips(lpips_weights)
    pipeline = UpscalePipeline.from_pretrained(checkpoint)
    run = pipeline.upscaler.origin
    source: str = data or run.get("data", {}).get("source") or "emoji_captions"
    degradation = CLEAN if clean else from_dict(DegradationConfig, run.get("degradation", {}), "degradation")
    held = held_back(source, pipeline, degradation, n_pictures)
    chosen = pipeline.pipeline.settings.changed(**settings or {})
    made = {
        "bicubic": bicubic(held),
        "tokenizer": ThroughBits(pipeline.pipeline.model.tokenizer)(held.true),
        "upscaled": upscaled(pipeline, held, chosen),
    }
    numbers: dict[str, Any] = {name: measured(images, held, judge) for name, images in made.items()}
    numbers |= {"data": source, "pictures": len(held.true), "clean": clean, "checkpoint": str(checkpoint)}
    numbers["seconds"] = round(time.monotonic() - started, 1)
    atomic.write_json(json_file, numbers)
    logging.info("wrote %s", json_file)
    print(as_text(numbers, made))
    if sheet:
        behind = [source, *pipeline.pipeline.model.trained_on, *data_of(pipeline.upscaler.origin)]
        draw_sheet(Path(sheet), held, made, sources.attribution(behind))
    return numbers


def held_back(data: str, pipeline: UpscalePipeline, degradation: DegradationConfig, most: int) -> HeldBack:
    """Reads pictures of the splits that are not trained on, always the same, and spoils them."""
    config, side = pipeline.upscaler.config, pipeline.pipeline.picture_size()[0]
    fit = sources.fit_of(pipeline.upscaler.origin)
    splits = [sources.open_source(data, split) for split in ("validation", "compositions")]
    records = [part[i] for part in splits for i in range(len(part))][:most]
    train = sources.open_source(data, "train")
    places = np.random.default_rng(0).permutation(len(train))[:OTHERS]
    if len(records) < FEWEST or len(places) < FEWEST:
        raise UserError(
            f"{data} has {len(records)} pictures that are held back and {len(train)} others; EffNet-KID needs at least "
            f"{FEWEST} of each: use a larger data set"
        )
    pairs = [
        degrade(x, config.factor, degradation, 0, PLACES + i)
        for i, x in enumerate(pictures.decode_squares(records, side, fit))
    ]
    true, low = (np.stack(part) for part in zip(*pairs, strict=True))
    others = pictures.decode_squares([train[int(i)] for i in places], side, fit)
    return HeldBack(true, low, [r["caption"] for r in records], generation.gallery_features(others))


def bicubic(held: HeldBack) -> Images:
    """Enlarges the small pictures bicubically."""
    size = held.true.shape[2], held.true.shape[1]
    return np.stack([np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BICUBIC)) for x in held.low])


def upscaled(
    pipeline: UpscalePipeline,
    held: HeldBack,
    settings: Any,
    prompts: Sequence[str] | None = None,
    colour: str | None = None,
) -> Images:
    """Draws the small pictures large, from their captions or from other prompts, with the upscaler's own colours."""
    own = pipeline.upscaler.config.prompt
    prompts = prompts or (None if own else held.captions)
    request = UpscaleRequest([Image.fromarray(x) for x in held.low], prompts, colour=colour)
    return np.stack([np.asarray(picture) for picture in pipeline(request, settings)])


def measured(made: Images, held: HeldBack, judge: Any = None) -> dict[str, Any]:
    """Compares pictures with the true ones.

    Args:
      judge: the parameters of `lpips.lpips_distance`, or None.
    Returns:
      psnr in dB, ssim and, with a judge, lpips against the true pictures, kid (EffNet-KID against others of the train
        split), consistency (PSNR in dB of the pictures made small again bicubically, against the small ones), each with
        `_interval`, 95%.
    """
    small = held.low.shape[2], held.low.shape[1]
    again = [np.asarray(Image.fromarray(x).resize(small, Image.Resampling.BICUBIC)) for x in made]
    found = {
        "psnr": psnr_per_picture(held.true, made),
        "ssim": ssim_per_picture(held.true, made),
        "consistency": psnr_per_picture(held.low, np.stack(again)),
    }
    if judge is not None:
        found["lpips"] = lpips.lpips_per_picture(judge, held.true, made)
    numbers: dict[str, Any] = {}
    for name, values in found.items():
        numbers[name] = float(np.mean(values))
        numbers[f"{name}_interval"] = list(bootstrap.mean_interval(values))
    features = generation.features_of(made)
    numbers["kid"], numbers["kid_error"] = effnet_kid(features, held.others)
    numbers["kid_interval"] = list(bootstrap.kid_interval(features, held.others))
    return numbers


def as_text(numbers: Mapping[str, Any], rows: Sequence[str] | Mapping[str, Any]) -> str:
    """Writes the table of some rows."""
    columns = [name for name in _COLUMNS if all(name in numbers[row] for row in rows)]
    lines = [f"{'':>24}" + "".join(f"{name:>13}" for name in columns)]
    lines += [f"{row:>24}" + "".join(f"{numbers[row][name]:13.4g}" for name in columns) for row in rows]
    return "\n".join(lines)


def draw_sheet(path: Path, held: HeldBack, made: Mapping[str, Images], footer: str) -> None:
    """Draws some of the pictures, one row for each way, and the true ones below."""
    places = np.linspace(0, len(held.true) - 1, _SHEET).astype(int)
    rows = {**made, "true": held.true}
    sheets.comparison_sheet(
        [images[places] for images in rows.values()],
        list(rows),
        path,
        captions=[held.captions[i] for i in places],
        footer=footer,
    )
    logging.info("wrote %s", path)
