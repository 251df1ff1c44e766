"""`infinity-jax sample`: prompts -> text features -> bits, scale by scale -> pictures."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from infinity_jax.data.sources import attribution
from infinity_jax.files import picture_writer, sheets
from infinity_jax.files.picture_writer import Wanted
from infinity_jax.sampling.pipeline import InfinityPipeline

# A sheet of a long list shows its first pictures: at most so many, and so many pixels.
_LARGEST_SHEET, _SHEET_PIXELS = 64, 1 << 25


def main(
    prompts: Sequence[str],
    out: str | Path,
    checkpoint: str | None = None,
    seed: int = 0,
    cfg: tuple[float, ...] | None = None,
    tau: tuple[float, ...] | None = None,
    top_p: float | None = None,
    aspect_ratio: str = "1:1",
    budget: str | None = None,
    negative_prompt: str = "",
    guidance: str | None = None,
    pruning: str | None = None,
    unguided_scales: tuple[int, ...] | None = None,
    reuse_guidance: bool | None = None,
    batch: int | None = None,
    mesh: str | None = None,
    rules: str = "",
    scan_layers: bool = True,
    skip_existing: bool = False,
) -> None:
    """Writes one PNG per prompt, and sheet.png with the first prompts under their pictures.

    Pictures are written while the next batch is drawn. Each appears whole or not at all, and holds
    its prompt, seed and settings (`pictures.read_metadata`).

    Args:
      prompts: what to draw; picture i has the seed `seed` + i.
      out: folder for the pictures.
      checkpoint: an exported folder or a training workdir; None is the one in the package.
      cfg, tau, top_p, guidance, pruning, unguided_scales, reuse_guidance: see `SampleConfig`; None takes the
        checkpoint's own.
      aspect_ratio: "height:width".
      budget: pixels, "0.06M" to "1M"; None takes the checkpoint's own.
      negative_prompt: what to steer away from; "" uses the learned empty caption.
      batch: see `InfinityPipeline.stream`.
      mesh, rules, scan_layers: see `InfinityPipeline.from_pretrained`.
      skip_existing: keeps pictures in `out` whose metadata are those that they would get; the weights of the checkpoint
        are not compared, only its name.
    """
    folder = Path(out)
    pipeline = InfinityPipeline.from_pretrained(checkpoint or "bundled", mesh, rules, scan_layers)
    settings = pipeline.settings.changed(
        cfg=cfg,
        tau=tau,
        top_p=top_p,
        guidance=guidance,
        pruning=pruning,
        unguided_scales=unguided_scales,
        reuse_guidance=reuse_guidance,
    )
    common = {
        "negative_prompt": negative_prompt,
        **dataclasses.asdict(settings),
        "aspect_ratio": aspect_ratio,
        "budget": budget or pipeline.model.tokenizer.scales,
        "checkpoint": str(checkpoint or "bundled"),
    }
    wanted = _wanted(folder, prompts, seed, common)
    missing = [p for p in wanted if not (skip_existing and p.is_there())]
    if kept := len(wanted) - len(missing):
        logging.info("%d of %d pictures are there already and kept", kept, len(wanted))
    if missing:
        drawn = pipeline.stream(
            [p.metadata["prompt"] for p in missing],
            [p.metadata["seed"] for p in missing],
            settings,
            negative_prompts=[negative_prompt] * len(missing) if negative_prompt else None,
            aspect_ratio=aspect_ratio,
            budget=budget,
            batch=batch,
        )
        # Not before all that was asked for has been found to be possible.
        folder.mkdir(parents=True, exist_ok=True)
        picture_writer.write_all(missing, drawn, "--skip-existing goes on from there")
    shown = _draw_sheet(wanted, folder / "sheet.png", attribution(pipeline.model.source))
    logging.info(
        "wrote %d pictures and sheet.png%s to %s",
        len(missing),
        "" if shown == len(wanted) else f" of the first {shown}",
        folder,
    )


def _wanted(folder: Path, prompts: Sequence[str], seed: int, common: Mapping[str, Any]) -> list[Wanted]:
    digits = max(4, len(str(len(prompts) - 1)))
    return [
        # As JSON gives them back, lists for tuples, so that notes can be compared.
        Wanted(
            folder / f"{i:0{digits}d}-{file_stem(prompt)}.png",
            json.loads(json.dumps({"prompt": prompt, "seed": seed + i, **common})),
        )
        for i, prompt in enumerate(prompts)
    ]


def _draw_sheet(pictures: Sequence[Wanted], path: Path, footer: str) -> int:
    """A sheet of the first pictures, from their files; returns how many it shows."""
    with Image.open(pictures[0].path) as first:
        pixels = first.width * first.height
    # Small pictures are shown twice as large.
    scale = 2 if pixels <= 256 * 256 else 1
    shown = pictures[: max(1, min(_LARGEST_SHEET, _SHEET_PIXELS // (pixels * scale**2)))]
    images = [np.asarray(Image.open(p.path).convert("RGB")) for p in shown]
    sheets.picture_sheet(images, [p.metadata["prompt"] for p in shown], path, scale=scale, footer=footer)
    return len(shown)


def file_stem(prompt: str) -> str:
    """A prompt as part of a file name: letters, digits and dashes, at most 60."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].rstrip("-") or "picture"
