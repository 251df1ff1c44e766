"""One's own pictures, from what is bundled: first the tokenizer, which must be able to show them, then the transformer.

    infinity-jax prepare --source folder:PATH --preview preview.png
    infinity-jax train-tokenizer --config finetune:tokenizer --config.data.source=folder:PATH \\
        --workdir runs/my_tokenizer
    infinity-jax train --config finetune --config.data.source=folder:PATH --config.tokenizer=runs/my_tokenizer \\
        --workdir runs/mine

Both are the bundled models and start from their weights. The rates were found by trying on two sets of pictures, see
docs/tutorials/05_own_pictures.md, with the times and what came out. `:debug` and `:tokenizer_debug` run two steps.
"""

from pathlib import Path

from ml_collections import ConfigDict

from infinity_jax import config_files
from infinity_jax.errors import UserError

HERE = Path(__file__).parent
# Parts of the run, so that a short one has them too.
OFTEN = dict(checkpoint_every="10%", sample_every="10%", evaluate_every="10%")


def get_config(argument: str = "") -> ConfigDict:
    """The config of the transformer, or with "tokenizer" of the tokenizer; "debug" and "tokenizer_debug" are tiny."""
    part, _, debug = argument.rpartition("_") if argument.endswith("debug") else (argument, "", "")
    if part not in ("", "tokenizer"):
        raise UserError(
            f"configs/finetune.py has no {argument!r}; known: tokenizer, debug, tokenizer_debug, or nothing"
        )
    file = HERE / ("emoji_tokenizer.py" if part else "emoji.py")
    config = config_files.load(f"{file}:debug" if debug else str(file))
    with config.unlocked(), config.ignore_type():
        config.data.source = "folder:"
        config.train.init_from = "" if debug else "bundled"
        if not debug:
            rate, steps = (1e-3, 600) if part else (1e-3, 1000)
            config.optim.update(dict(learning_rate=rate, warmup_steps=20, ema_decay=0.98))
            config.train.update(dict(steps=steps, **OFTEN))
    return config
