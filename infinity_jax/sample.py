"""`infinity-jax sample`: prompts -> text features -> bits, scale by scale -> pictures."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging
from PIL import Image

from infinity_jax.data import sources
from infinity_jax.evaluation import sheets
from infinity_jax.pipeline import InfinityPipeline
from infinity_jax.train_state import TrainState

SHEET_PICTURES = 24


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
    mesh: str | None = None,
    rules: str = "",
) -> None:
    """Writes one PNG per prompt, and sheet.png with the prompts under the pictures.

    Args:
      prompts: what to draw; picture i has the seed `seed` + i.
      out: folder for the pictures.
      checkpoint: an exported folder or a training workdir; None is the one in the package.
      cfg, tau, top_p, guidance: see `SampleConfig`; None takes the checkpoint's own.
      aspect_ratio: "height:width".
      budget: pixels, "0.06M" to "1M"; None takes the checkpoint's own.
      negative_prompt: what to steer away from; "" uses the learned empty caption.
      mesh, rules: see `InfinityPipeline.from_pretrained`.
    """
    pipeline = InfinityPipeline.from_pretrained(checkpoint or "bundled", mesh, rules)
    settings = pipeline.settings.changed(cfg=cfg, tau=tau, top_p=top_p, guidance=guidance)
    images = pipeline.arrays(
        prompts,
        [seed + i for i in range(len(prompts))],
        settings,
        negative_prompts=[negative_prompt] * len(prompts) if negative_prompt else None,
        aspect_ratio=aspect_ratio,
        budget=budget,
    )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for i, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        Image.fromarray(image).save(folder / f"{i:04d}-{file_stem(prompt)}.png")
    sheets.picture_sheet(images, prompts, folder / "sheet.png", footer=attribution(pipeline.model.source))
    logging.info("wrote %d pictures and sheet.png to %s", len(images), folder)


def file_stem(prompt: str) -> str:
    """A prompt as part of a file name: letters, digits and dashes, at most 60."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].rstrip("-") or "picture"


def attribution(source: str) -> str:
    """What a sheet must say about the pictures it was trained on, "" if nothing is known."""
    return "Trained on OpenMoji pictures (openmoji.org, CC BY-SA 4.0)." if source == "emoji_captions" else ""


def sheet_hook(
    pipeline_of: Callable[[TrainState], InfinityPipeline], source: sources.Source, seed: int, folder: Path
) -> Callable[[int, TrainState], None]:
    """A training hook that draws the same few train captions each time, to see them become better."""
    chosen = np.random.default_rng(seed).permutation(len(source))[:SHEET_PICTURES]
    captions = [source[int(i)]["caption"] for i in chosen]

    def draw(step: int, state: TrainState) -> None:
        # All processes draw, since the parameters lie over all of them; the first one writes.
        images = pipeline_of(state).arrays(captions, list(range(seed, seed + len(captions))))
        if jax.process_index() == 0:
            sheets.picture_sheet(images, captions, folder / f"samples-{step:07d}.png", title=f"step {step}")

    return draw
