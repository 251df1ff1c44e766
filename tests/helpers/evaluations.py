"""Commands that evaluate a saved network on a folder of captioned pictures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from helpers.networks import random_pictures, random_state
from infinity_jax.cli.main import main
from infinity_jax.files.torch_writer import write_torch_file
from infinity_jax.metrics import lpips


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


def write_weights(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """Writes a torch file of random weights; returns it."""
    state = random_state(shapes)
    write_torch_file(file, {k: (v.dtype, v.shape) for k, v in state.items()}, state.values())
    return file


def write_lpips(root: Path) -> tuple[Path, Path]:
    """Writes random weights of VGG16 and of LPIPS's heads."""
    return write_weights(root / "vgg16.pth", lpips.vgg_shapes()), write_weights(
        root / "heads.pth", lpips.head_shapes()
    )
