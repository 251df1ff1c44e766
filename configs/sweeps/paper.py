"""The paper's five sizes, 125M to 4.7B, x four vocabularies x three lengths, at 256x256 on TPU v5p-128 (Fig. 9, 10).

    infinity-jax sweep --config configs/sweeps/paper.py --dry-run
    launch/slurm.sh sweep --config configs/sweeps/paper.py --workdir RUNS ...

Each cell is `infinity-jax train --config configs/pods/v5p_128.py:SIZE,0.06M` with its vocabulary and length. Say where
the tokenizers, the text encoder and the data are:

    "--config.changes=tokenizer=... text.path=... data.source=records:..."

and, for tokenizers of your own, `--config.axes.vocabulary="('d32: model.bits=32 tokenizer=DIR',)"`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The grid; its keys are documented in infinity_jax/tools/scaling/grid.py."""
    config = ConfigDict(sort_keys=False)
    config.base = "pods/v5p_128:{size},0.06M"
    config.changes = "train.evaluate_every=1000"
    config.axes = ConfigDict(
        dict(
            length=(
                "10k: train.steps=10000",
                "40k: train.steps=40000",
                "90k: train.steps=90000",
            ),
            vocabulary=tuple(
                f"d{bits}: model.bits={bits} tokenizer=tokenizers/d{bits}" for bits in (16, 24, 32, 64)
            ),
            size=("125m", "361m", "940m", "2.2b", "4.7b"),
            seed=("0: train.seed=0",),
        ),
        sort_keys=False,
    )
    config.pictures = 0
    config.hardware = ConfigDict(dict(chip="v5p", count=64, utilisation=0.4))
    return config
