"""Draws the sheets of docs/guides/scenes.md: four rows of six scenes of a split.

python experiments/scene_sheets.py --out results/scenes
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from infinity_jax.data.scenes.captions import caption
from infinity_jax.data.scenes.description import describe
from infinity_jax.data.scenes.tracer import render

ROWS, COLUMNS, SIDE = 4, 6, 128


def main() -> None:
    """Writes train.png and compositions.png, and prints the captions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    draw = jax.jit(lambda numbers: render(numbers, SIDE, SIDE))
    for split in ("train", "compositions"):
        scenes = [describe(0, split, number) for number in range(ROWS * COLUMNS)]
        pictures = np.asarray(draw(jnp.stack([scene.numbers() for scene in scenes])))
        rows = pictures.reshape(ROWS, COLUMNS, SIDE, SIDE, 3).swapaxes(1, 2)
        Image.fromarray(rows.reshape(ROWS * SIDE, COLUMNS * SIDE, 3)).save(
            out / f"{split}.png", optimize=True
        )
        print(split, *map(caption, scenes), sep="\n  ")


if __name__ == "__main__":
    main()
