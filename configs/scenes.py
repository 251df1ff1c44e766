"""Ray-traced scenes, 64x64 pixels: the models and recipes of the emoji, on pictures that are never seen twice.

    infinity-jax train-tokenizer --config scenes:tokenizer --workdir runs/scenes_tokenizer
    infinity-jax train --config scenes --config.tokenizer=runs/scenes_tokenizer --workdir runs/scenes

`:debug` and `:tokenizer_debug` run two steps of small models.
"""

from pathlib import Path

from ml_collections import ConfigDict

from infinity_jax import config_files
from infinity_jax.errors import UserError

HERE = Path(__file__).parent


def get_config(argument: str = "") -> ConfigDict:
    """The config of the transformer, or with "tokenizer" of the tokenizer; "debug" and "tokenizer_debug" are tiny."""
    part, _, debug = argument.rpartition("_") if argument.endswith("debug") else (argument, "", "")
    if part not in ("", "tokenizer"):
        raise UserError(
            f"configs/scenes.py has no {argument!r}; known: tokenizer, debug, tokenizer_debug, or nothing"
        )
    file = HERE / ("emoji_tokenizer.py" if part else "emoji.py")
    config = config_files.load(f"{file}:debug" if debug else str(file))
    config.data.source = "scenes"
    if not part:
        # Nothing can be known by heart, so that sampling need not be nearly greedy.
        config.sample.tau = 0.5
    return config
