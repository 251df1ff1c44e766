"""Vocabularies of 2^16 and 2^32 for models of three sizes (paper Fig. 9).

    infinity-jax ablate vocabulary --workdir runs/vocabulary_by_size

Trains two tokenizers first, then 18 transformers. Losses of different vocabularies are of different tokens and cannot
be compared; the pictures can.
"""

from pathlib import Path

from ml_collections import ConfigDict

TOKENIZER = Path(__file__).parents[1] / "emoji_tokenizer.py"
BITS = (16, 32)
SIZES = {
    "270k": "model.layers=2 model.width=64 model.heads=2 optim.learning_rate=4e-3",
    "1.4M": "model.layers=4 model.width=128 model.heads=2 optim.learning_rate=2e-3",
    "7.3M": "model.layers=6 model.width=256 model.heads=4 optim.learning_rate=1e-3",
}


def get_config() -> ConfigDict:
    """The grid; its keys are documented in infinity_jax/tools/scaling/grid.py."""
    config = ConfigDict(sort_keys=False)
    config.base = "emoji"
    config.tokenizers = tuple(
        f"{bits}: {TOKENIZER} model.bits={bits} model.base_width=64 loss.quantizer=1.0 "
        "train.steps=1500 train.sample_every=0 train.evaluate_every=0"
        for bits in BITS
    )
    config.changes = (
        "optim.warmup_steps=20 optim.ema_decay=0.0 train.steps=300 train.log_every=10 train.evaluate_every=100 "
        "train.checkpoint_every=300 train.keep_checkpoints=1 train.sample_every=0"
    )
    config.axes = ConfigDict(
        dict(
            model=tuple(
                f"{size}-d{bits}: tokenizer={{workdir}}/tokenizers/{bits} model.bits={bits} {changes}"
                for size, changes in SIZES.items()
                for bits in BITS
            ),
            seed=("0: train.seed=0", "1: train.seed=1", "2: train.seed=2"),
        ),
        sort_keys=False,
    )
    config.pictures = 512
    config.hardware = ConfigDict(dict(chip="", count=1, utilisation=0.3))
    config.compare = "model"
    config.columns = ("kid", "retrieval_top1", "retrieval_top5", "retrieval_compositions_top1")
    config.paper = ()
    config.source = ""
    return config
