"""Trains on pictures of your own making: a data set is a folder of pictures with a file of captions.

    python examples/custom_dataset.py --steps 200 --workdir runs/shapes

Replace `captioned_pictures` by whatever yours come from. For more than some ten thousand pictures, or pictures of many
aspect ratios, turn the folder into shards first: `infinity-jax prepare --source folder:DIR --out SHARDS`.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw

from infinity_jax import InfinityPipeline, config_files
from infinity_jax.training import train_transformer

COLOURS = ("red", "orange", "gold", "green", "teal", "blue", "purple", "black")
SHAPES = ("circle", "square", "triangle", "ring")


def captioned_pictures() -> Iterator[tuple[str, Image.Image]]:
    """Yields (caption, picture): every shape in every colour and three sizes, on white."""
    for shape in SHAPES:
        for colour in COLOURS:
            for size, r in (("small", 12), ("medium", 20), ("large", 28)):
                picture = Image.new("RGB", (64, 64), "white")
                draw, box = ImageDraw.Draw(picture), (32 - r, 32 - r, 32 + r, 32 + r)
                if shape == "circle":
                    draw.ellipse(box, fill=colour)
                elif shape == "ring":
                    draw.ellipse(box, outline=colour, width=5)
                elif shape == "square":
                    draw.rectangle(box, fill=colour)
                else:
                    draw.polygon([(32, 32 - r), (32 + r, 32 + r), (32 - r, 32 + r)], fill=colour)
                yield f"{size} {colour} {shape}", picture


def write_folder(folder: Path) -> None:
    """Writes the pictures and captions.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "captions.jsonl", "w") as captions:
        for number, (caption, picture) in enumerate(captioned_pictures()):
            picture.save(folder / f"{number}.png")
            captions.write(json.dumps({"file_name": f"{number}.png", "caption": caption}) + "\n")


def main() -> None:
    """Writes the data set, trains on it from the bundled weights, and draws."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--config", default="emoji")
    parser.add_argument("--init-from", default="bundled")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--workdir", type=Path, required=True)
    arguments = parser.parse_args()

    data = arguments.workdir / "data"
    write_folder(data)
    config = config_files.load(arguments.config)
    config.data.source = f"folder:{data}"
    config.train.init_from = arguments.init_from
    config.train.steps = arguments.steps
    train_transformer.main(config, arguments.workdir)
    prompts = ["large teal ring", "small gold triangle"]
    for prompt, picture in zip(
        prompts, InfinityPipeline.from_pretrained(arguments.workdir)(prompts), strict=True
    ):
        picture.save(arguments.workdir / f"{prompt.replace(' ', '-')}.png")


if __name__ == "__main__":
    main()
