"""Draws pictures of prompts, from Python.

    python examples/sample.py "red heart" "woman astronaut" --out out

With a checkpoint of your own: `--checkpoint runs/mine`, a training's workdir or a folder of `infinity-jax export`.
"""

import argparse
from pathlib import Path

from infinity_jax import InfinityPipeline


def main() -> None:
    """Draws each prompt with three strengths of guidance, with the same seed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--out", type=Path, default=Path("out"))
    arguments = parser.parse_args()

    pipeline = InfinityPipeline.from_pretrained(arguments.checkpoint)
    arguments.out.mkdir(parents=True, exist_ok=True)
    # One compiled program serves every prompt, seed and value of cfg, tau and top_p.
    for cfg in (1.0, 3.0, 6.0):
        pictures = pipeline(arguments.prompts, cfg=cfg, seeds=[0] * len(arguments.prompts))
        for prompt, picture in zip(arguments.prompts, pictures, strict=True):
            picture.save(arguments.out / f"{prompt.replace(' ', '-')}-cfg{cfg:g}.png")


if __name__ == "__main__":
    main()
