"""Commands that evaluate a saved network on a folder of captioned pictures."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from helpers.networks import random_pictures
from infinity_jax.cli.main import main


def captioned_folder(folder: Path, count: int) -> Path:
    """Writes so many pictures of noise, 20 high and 24 wide, with captions; returns the folder."""
    folder.mkdir()
    rows = ["file_name,caption"]
    for i, image in enumerate(random_pictures(count, 20, 24)):
        Image.fromarray(image).save(folder / f"{i}.png")
        rows.append(f"{i}.png,waves {i}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    return folder


def evaluate(command: str, checkpoint: Path, root: Path, count: int, *arguments) -> tuple[int, Any]:
    """Evaluates a checkpoint on so many pictures, kept under `root`: the exit code, and the numbers or None."""
    folder = root / f"pictures-{count}"
    if not folder.exists():
        captioned_folder(folder, count)
    file = root / "numbers.json"
    file.unlink(missing_ok=True)
    fixed = ("--checkpoint", checkpoint, "--data", f"folder:{folder}", "--json", file)
    code = main([*map(str, (command, *fixed, *arguments))])
    return code, json.loads(file.read_text()) if file.exists() else None
