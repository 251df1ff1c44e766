"""Bitwise self-correction on the bundled pictures: none, flips alone, and three strengths (paper Tables 7 and 8).

    infinity-jax ablate self-correction --workdir runs/self_correction

15 runs of a small model, 48 minutes of training on one core. What they gave here is in
results/ablations/self_correction/.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The grid; its keys are documented in infinity_jax/tools/scaling/grid.py."""
    config = ConfigDict(sort_keys=False)
    config.base = "emoji"
    config.changes = (
        "model.layers=4 model.width=128 model.heads=2 optim.learning_rate=2e-3 optim.warmup_steps=20 "
        "optim.ema_decay=0.0 train.steps=500 train.log_every=20 train.evaluate_every=100 train.checkpoint_every=500 "
        "train.keep_checkpoints=1 train.sample_every=0 sample.cfg=3.0 sample.tau=1.0"
    )
    config.axes = ConfigDict(
        dict(
            seed=("0: train.seed=0", "1: train.seed=1", "2: train.seed=2"),
            correction=(
                "none: correction.p=0.0",
                "flips-alone: correction.p=0.2 correction.requantise=False",
                "p10: correction.p=0.1",
                "p20: correction.p=0.2",
                "p30: correction.p=0.3",
            ),
        ),
        sort_keys=False,
    )
    config.pictures = 512
    config.hardware = ConfigDict(dict(chip="", count=1, utilisation=0.3))
    config.compare = "correction"
    config.columns = (
        "kid",
        "retrieval_top1",
        "retrieval_top5",
        "retrieval_compositions_top1",
        "validation_loss",
    )
    config.paper = (
        "9.76, 0.52, 29.53",
        "9.69, 0.52, 29.20",
        "3.45, 0.751, 30.47",
        "3.48, 0.763, 30.71",
        "3.33, 0.775, 31.05",
    )
    config.source = "Tables 7 and 8: FID, ImageReward, HPSv2.1"
    return config
