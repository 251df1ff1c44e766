"""Where prepared data and caches lie."""

import os
from pathlib import Path


def data_dir() -> Path:
    """Returns the folder for prepared data and cached features: `$INFINITY_DATA`, else `~/.cache/infinity_jax`."""
    return Path(os.environ.get("INFINITY_DATA") or Path.home() / ".cache" / "infinity_jax")


def bundled_checkpoint() -> Path:
    """Returns the folder of the checkpoint that is shipped inside the package (both models, EMA weights)."""
    return Path(__file__).parents[1] / "checkpoints" / "emoji"
