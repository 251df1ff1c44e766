"""The transformer of configs/emoji.py in three stages: 32x32, then 48x48, then 64x64 pixels.

    infinity-jax train --config configs/emoji_progressive.py --workdir runs/stages

Each stage has a folder of its own in the workdir, starts from the averaged weights of the one before, and may change
any key: `--config.stages.px48.train.steps=500`. A key without `stages` is changed in all of them. The first stages
draw the first scales of "64px" with its positions, as the paper's stages draw the first ones of "1M".

`:debug` runs two steps of a tiny model in each stage.
"""

from pathlib import Path

from ml_collections import ConfigDict

from infinity_jax import config_files

# Scales, steps, batch size, learning rate; together two thirds of the tokens that configs/emoji.py trains on.
STAGES = {
    "px32": ("32px_of_64px", 2000, 64, 1e-3),
    "px48": ("48px_of_64px", 2000, 32, 1e-3),
    "px64": ("64px", 2000, 32, 5e-4),
}


def get_config(argument: str = "") -> ConfigDict:
    """The config; `argument` as in configs/emoji.py."""
    base = config_files.load(f"{Path(__file__).with_name('emoji.py')}:{argument}")
    return config_files.with_stages(
        base,
        {
            name: {"data": {"scales": scales}, "optim": {"learning_rate": rate}}
            | ({} if argument == "debug" else {"train": {"steps": steps, "batch_size": batch_size}})
            for name, (scales, steps, batch_size, rate) in STAGES.items()
        },
    )
