"""Where prepared data and caches lie."""

import os
from pathlib import Path

from infinity_jax.errors import UserError

_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin")
_NAMES = ("config.json", "checksums.json", "index.json", "tokenizer.json")
_FOLDERS = ("tokenizer", "text_encoder", "checkpoints", "parts")


def data_dir() -> Path:
    """Returns the folder for prepared data and cached features: `$INFINITY_DATA`, else `~/.cache/infinity_jax`."""
    return Path(os.environ.get("INFINITY_DATA") or Path.home() / ".cache" / "infinity_jax")


def bundled_checkpoint() -> Path:
    """Returns the folder of the checkpoint that is shipped inside the package (both models, EMA weights)."""
    return Path(__file__).parents[1] / "checkpoints" / "emoji"


def check_not_read(out: str | Path, option: str, *inputs: str | Path | None) -> None:
    """Raises UserError if a command would write over what it reads.

    Args:
      out: the file or folder to write, of the command line's `option`.
      inputs: files and folders that are read. Of a folder its weights and their descriptions are meant; other things,
        like the numbers that are measured of a checkpoint, may lie in it.
    """
    out = Path(out).expanduser()
    for source in map(Path, filter(None, inputs)):
        source = source.expanduser()
        if not (source.exists() and out.exists()):
            continue
        within = source.is_dir() and out.resolve().is_relative_to(source.resolve())
        part = out.suffix in _WEIGHTS or out.name in (*_NAMES, *_FOLDERS)
        if out.samefile(source) or (within and part):
            raise UserError(f"{option} {out} is what this command reads ({source}); name another place")
