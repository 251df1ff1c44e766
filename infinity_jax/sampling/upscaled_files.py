"""`infinity-jax upscale`: small pictures in, large ones out."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from infinity_jax.checkpoints.origin import data_of
from infinity_jax.data.sources import attribution
from infinity_jax.files import pictures as picture_files
from infinity_jax.files import sheets
from infinity_jax.sampling.pictures_to_files import read_picture, squared, targets_of
from infinity_jax.sampling.request import SystemOptions
from infinity_jax.sampling.upscaling import UpscalePipeline, UpscaleRequest


def main(
    files: Sequence[str],
    request: UpscaleRequest,
    out: str | Path,
    system: SystemOptions,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes one PNG per picture, named as the picture, and sheet.png of bicubic and drawn ones.

    Each PNG holds its prompt, seed and settings (`pictures.read_metadata`).

    Args:
      files: pictures to make large.
      request: all else; its pictures are read here.
      out: folder for the pictures.
      system: what draws.
      settings: values of fields of `SampleConfig`; those that are None are the checkpoint's own.
    Raises:
      UserError: a file cannot be read or written, or `UpscalePipeline` refuses what it holds; nothing was written then.
    """
    paths = [Path(file) for file in files]
    targets = targets_of(paths, Path(out))
    small = [read_picture(path) for path in paths]
    pipeline = UpscalePipeline.from_pretrained(*dataclasses.astuple(system))
    chosen = pipeline.pipeline.settings.changed(**settings or {})
    drawn = pipeline(dataclasses.replace(request, pictures=small), chosen)
    prompts = request.prompts or [pipeline.upscaler.config.prompt] * len(small)
    seeds = request.seeds or range(len(small))
    Path(out).mkdir(parents=True, exist_ok=True)
    for path, target, picture, prompt, seed in zip(paths, targets, drawn, prompts, seeds, strict=True):
        note = {
            "prompt": prompt,
            "seed": seed,
            **dataclasses.asdict(chosen),
            "upscaled": str(path),
            "factor": pipeline.upscaler.config.factor,
            "colour": request.colour or pipeline.upscaler.config.colour,
            "checkpoint": system.checkpoint,
        }
        picture_files.write(picture, target, note)
    sheets.comparison_sheet(
        [[_shown(x, y.size) for x, y in zip(small, drawn, strict=True)], [_shown(y, y.size) for y in drawn]],
        ["bicubic", "upscaled"],
        Path(out) / "sheet.png",
        captions=[f"{path.stem}: {prompt}" for path, prompt in zip(paths, prompts, strict=True)],
        footer=attribution([*pipeline.pipeline.model.trained_on, *data_of(pipeline.upscaler.origin)]),
    )
    logging.info("wrote %d pictures and sheet.png to %s", len(drawn), out)


def _shown(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    return squared(picture.resize(size, Image.Resampling.BICUBIC))
