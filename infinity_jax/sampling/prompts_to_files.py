"""`infinity-jax sample`: prompts -> text features -> bits, scale by scale -> pictures."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from infinity_jax.data.sources import attribution
from infinity_jax.files import picture_writer, sheets
from infinity_jax.files import pictures as picture_files
from infinity_jax.files.picture_writer import Wanted
from infinity_jax.sampling.pipeline import InfinityPipeline
from infinity_jax.sampling.preview_files import are_there, drawn_with_previews
from infinity_jax.sampling.request import SampleRequest, SystemOptions

# A sheet of a long list shows its first pictures: at most so many, and so many pixels.
_LARGEST_SHEET, _SHEET_PIXELS = 64, 1 << 25


def main(
    request: SampleRequest,
    out: str | Path,
    system: SystemOptions,
    settings: Mapping[str, Any] | None = None,
    skip_existing: bool = False,
    preview: bool = False,
) -> None:
    """Writes one PNG per prompt, and sheet.png with the first prompts under their pictures.

    Pictures are written while the next batch is drawn. Each appears whole or not at all, and holds
    its prompt, seed and settings (`pictures.read_metadata`).

    Args:
      request: what to draw.
      out: folder for the pictures.
      system: what draws it.
      settings: values of fields of `SampleConfig`; the others, and those that are None, are the checkpoint's own.
      skip_existing: keeps pictures in `out` whose metadata are those that they would get; the weights of the checkpoint
        are not compared, only its name.
      preview: writes beside each picture a strip of all its scales and an animation of them.
    """
    folder = Path(out)
    pipeline = InfinityPipeline.from_pretrained(*dataclasses.astuple(system))
    chosen = pipeline.settings.changed(**settings or {})
    request = dataclasses.replace(request, batch=pipeline.batch_of(request))
    common = {
        **dataclasses.asdict(chosen),
        "aspect_ratio": request.aspect_ratio,
        "budget": request.budget or pipeline.model.tokenizer.scales,
        "checkpoint": system.checkpoint,
        # Single bits may be rounded otherwise in another one.
        "batch": request.batch,
    }
    wanted = _wanted(folder, request, common)
    there = [x.is_there() and (not preview or are_there(x.path)) for x in wanted] if skip_existing else []
    missing = [i for i in range(len(wanted)) if not (there and there[i])]
    if kept := len(wanted) - len(missing):
        logging.info("%d of %d pictures are there already and kept", kept, len(wanted))
    if missing:
        if preview:
            drawn = drawn_with_previews(pipeline, request, chosen, {i: wanted[i].path for i in missing})
        else:
            drawn = pipeline.stream(request, chosen, only=missing)
        # Not before all that was asked for has been found to be possible.
        folder.mkdir(parents=True, exist_ok=True)
        picture_writer.write_all({i: wanted[i] for i in missing}, drawn, "--skip-existing resumes from there")
    shown = _draw_sheet(wanted, folder / "sheet.png", attribution(pipeline.model.trained_on))
    logging.info(
        "wrote %d pictures and sheet.png%s to %s",
        len(missing),
        "" if shown == len(wanted) else f" of the first {shown}",
        folder,
    )


def _wanted(folder: Path, request: SampleRequest, common: Mapping[str, Any]) -> list[Wanted]:
    digits = max(4, len(str(len(request.prompts) - 1)))
    negative_prompts = request.negative_prompts or [""] * len(request.prompts)
    wanted = []
    each = zip(request.prompts, request.seeds, negative_prompts, strict=True)
    for i, (prompt, seed, negative) in enumerate(each):
        metadata = {"prompt": prompt, "seed": seed, "negative_prompt": negative, **common}
        # As JSON gives them back, lists for tuples, so that notes can be compared.
        metadata = json.loads(json.dumps(metadata))
        wanted.append(Wanted(folder / f"{i:0{digits}d}-{file_stem(prompt)}.png", metadata))
    return wanted


def _draw_sheet(pictures: Sequence[Wanted], path: Path, footer: str) -> int:
    """Draws a sheet of the first pictures, from their files; returns how many it shows."""
    first = picture_files.read_rgb(pictures[0].path)
    pixels = first.width * first.height
    # Small pictures are shown twice as large.
    scale = 2 if pixels <= 256 * 256 else 1
    shown = pictures[: max(1, min(_LARGEST_SHEET, _SHEET_PIXELS // (pixels * scale**2)))]
    images = [np.asarray(picture_files.read_rgb(p.path)) for p in shown]
    sheets.picture_sheet(images, [p.metadata["prompt"] for p in shown], path, scale=scale, footer=footer)
    return len(shown)


def file_stem(prompt: str) -> str:
    """Makes a prompt a part of a file name: letters, digits and dashes, at most 60."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].rstrip("-") or "picture"
