"""`infinity-jax prepare --preview`: a sheet of what a model will see of a data set."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from infinity_jax.checkpoints.pretrained import load_tokenizer
from infinity_jax.data import pictures
from infinity_jax.data.reconstruction import ENOUGH_DB, reconstruct_some
from infinity_jax.data.sources import attribution, open_source
from infinity_jax.data.through_bits import ThroughBits
from infinity_jax.files import atomic, sheets

SHOWN = 12
SIDE = 160  # of a cell, at least


def write_preview(source: str, file: Path, fit: str, tokenizer: str) -> str:
    """Draws some pictures as they are, as they are fed, and as the tokenizer gives them back; returns what it found.

    Args:
      source: a name that `open_source` knows.
      file: the PNG to write.
      fit: as `data.fit`.
      tokenizer: as the key `tokenizer` of a config.
    Raises:
      UserError: the file cannot be written, the data or the tokenizer cannot be read.
    """
    atomic.check_target(file, "--preview")
    split, through_bits = open_source(source, "train"), ThroughBits(load_tokenizer(tokenizer))
    found = reconstruct_some(split, through_bits, fit)
    records = [split[int(place)] for place in found.places]
    originals = [pictures.decode_rgb(record["image"]) for record in records]
    oblong = sum(picture.width != picture.height for picture in originals)
    step = max(1, len(records) // SHOWN)
    shown = range(0, step * min(SHOWN, len(records)), step)
    factor = max(1, SIDE // through_bits.side)
    rows = [
        [_within(originals[i], factor * through_bits.side) for i in shown],
        [_enlarged(found.images[i], factor) for i in shown],
        [_enlarged(found.made[i], factor) for i in shown],
    ]
    words = f"PSNR {found.mean_psnr:.1f} dB over {len(records)} pictures, tokenizer {tokenizer}"
    sheets.comparison_sheet(
        rows,
        ["original", f"as fed ({fit})", "after the tokenizer"],
        file,
        captions=[f"{found.psnr[i]:.1f} dB: {records[i]['caption']}" for i in shown],
        scale=1,
        title=f"{source}: {words}",
        footer=attribution([source]),
    )
    lines = [f"wrote {file}: {words}"]
    if found.mean_psnr < ENOUGH_DB:
        lines.append(
            f"below {ENOUGH_DB:.0f} dB drawn pictures look poor, too: train the tokenizer on these pictures first, "
            f"infinity-jax train-tokenizer --config finetune:tokenizer --config.data.source={source} --workdir DIR"
        )
    if oblong and fit == "crop":
        lines.append(
            f"{oblong} of {len(records)} are not square, and what stands over is cut off; compare --fit pad and --fit "
            "stretch (in training: --config.data.fit)"
        )
    return "\n".join(lines)


def _within(picture: Image.Image, side: int) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes a picture with its proportions so that its longer side is `side` pixels."""
    longest = max(picture.size)
    width, height = (max(1, round(side * length / longest)) for length in picture.size)
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))


def _enlarged(image: UInt8[np.ndarray, "h w 3"], factor: int) -> UInt8[np.ndarray, "H W 3"]:
    return image.repeat(factor, axis=0).repeat(factor, axis=1)
