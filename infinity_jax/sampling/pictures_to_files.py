"""`infinity-jax edit`: pictures and a mask in, pictures of which a part is drawn anew out."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from infinity_jax.data import pictures as decoding
from infinity_jax.data.sources import attribution
from infinity_jax.errors import UserError
from infinity_jax.files import pictures as picture_files
from infinity_jax.files import sheets
from infinity_jax.sampling.editing import EditRequest
from infinity_jax.sampling.pipeline import InfinityPipeline
from infinity_jax.sampling.request import SystemOptions

_SHEET_SIDE = 256  # pixels of a side of the sheet's pictures, at most


def main(
    files: Sequence[str],
    mask_file: str | None,
    request: EditRequest,
    out: str | Path,
    system: SystemOptions,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes one PNG per picture, named as the picture, and sheet.png with pictures, masks and what came out.

    Each PNG holds its prompt, seed, settings, mask and what was kept (`pictures.read_metadata`).

    Args:
      files: pictures to edit.
      mask_file: the mask of all of them, or None.
      request: all else; its pictures and masks are read here.
      out: folder for the pictures.
      system: what draws.
      settings: values of fields of `SampleConfig`; those that are None are the checkpoint's own.
    Raises:
      UserError: a file cannot be read or written, or `edit` refuses what it holds; nothing was written then.
    """
    folder, paths = Path(out), [Path(file) for file in files]
    targets = targets_of(paths, folder)
    pictures = [read_picture(path) for path in paths]
    masks = None if mask_file is None else [read_picture(Path(mask_file))] * len(pictures)
    request = dataclasses.replace(request, pictures=pictures, masks=masks)
    pipeline = InfinityPipeline.from_pretrained(*dataclasses.astuple(system))
    chosen = pipeline.settings.changed(**settings or {})
    edited = pipeline.edit(request, chosen)
    folder.mkdir(parents=True, exist_ok=True)
    seeds = request.seeds or range(len(pictures))
    for path, target, picture, prompt, seed in zip(
        paths, targets, edited, request.prompts, seeds, strict=True
    ):
        note = {
            "prompt": prompt,
            "seed": seed,
            **dataclasses.asdict(chosen),
            "edited": str(path),
            "mask": mask_file,
            "strength": request.strength,
            "pasted": request.paste and masks is not None,
            "fixed": request.fixed,
            "feather": request.feather,
            "source_prompt": None if request.source_prompts is None else request.source_prompts[0],
            "threshold": None if request.source_prompts is None else request.threshold,
            "checkpoint": system.checkpoint,
        }
        picture_files.write(picture, target, note)
    _draw_sheet(
        request,
        edited,
        folder / "sheet.png",
        [path.stem for path in paths],
        attribution(pipeline.model.trained_on),
    )
    logging.info("wrote %d pictures and sheet.png to %s", len(edited), folder)


def targets_of(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Names what is written for each picture. UserError where names collide or a picture would be written over."""
    targets = [folder / f"{path.stem}.png" for path in paths]
    if len(set(targets)) < len(targets) or folder / "sheet.png" in targets:
        raise UserError("two pictures have one name, or one is named sheet; rename them")
    for path, target in zip(paths, targets, strict=True):
        if target.exists() and target.resolve() == path.resolve():
            raise UserError(f"{path} would be written over by what is made of it; give another --out")
    return targets


def read_picture(path: Path) -> Image.Image:
    """Reads a picture file. UserError where there is none or it is broken."""
    try:
        return decoding.decode_rgb(picture_files.read(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; give a picture") from error
    except picture_files.BrokenPicture as error:
        raise UserError(f"{path}: {error}") from error


def _draw_sheet(
    request: EditRequest, edited: Sequence[Image.Image], path: Path, names: Sequence[str], footer: str
) -> None:
    rows = [("given", request.pictures), ("drawn where white", request.masks), ("edited", edited)]
    rows = [(name, pictures) for name, pictures in rows if pictures is not None]
    sheets.comparison_sheet(
        [[squared(picture) for picture in pictures] for _, pictures in rows],
        [name for name, _ in rows],
        path,
        captions=[f"{name}: {prompt}" for name, prompt in zip(names, request.prompts, strict=True)],
        footer=footer,
    )


def squared(picture: Image.Image) -> np.ndarray:
    """Brings a picture to a sheet's squares, whole, on white."""
    square = Image.new("RGB", (_SHEET_SIDE, _SHEET_SIDE), "white")
    picture = picture.convert("RGB")
    factor = _SHEET_SIDE / max(picture.size)
    size = tuple(max(1, round(side * factor)) for side in picture.size)
    resampling = Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.LANCZOS
    small = picture.resize((size[0], size[1]), resampling)
    square.paste(small, ((_SHEET_SIDE - size[0]) // 2, (_SHEET_SIDE - size[1]) // 2))
    return np.asarray(square)
