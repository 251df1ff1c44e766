"""RoPE2d and scale embeddings against learned absolute positions (paper Fig. 13).

    infinity-jax ablate positions --workdir runs/positions

6 runs; the curves of each are in runs.csv.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The grid; its keys are documented in infinity_jax/tools/scaling/grid.py."""
    config = ConfigDict(sort_keys=False)
    config.base = "emoji"
    config.changes = (
        "model.layers=4 model.width=128 model.heads=2 optim.learning_rate=2e-3 optim.warmup_steps=20 "
        "optim.ema_decay=0.0 train.steps=300 train.log_every=10 train.evaluate_every=50 train.checkpoint_every=300 "
        "train.keep_checkpoints=1 train.sample_every=0"
    )
    config.axes = ConfigDict(
        dict(
            positions=("learned: model.positions=learned:64px", "RoPE2d: model.positions=rope2d"),
            seed=("0: train.seed=0", "1: train.seed=1", "2: train.seed=2"),
        ),
        sort_keys=False,
    )
    config.pictures = 512
    config.hardware = ConfigDict(dict(chip="", count=1, utilisation=0.3))
    config.compare = "positions"
    config.columns = ("train_loss", "validation_loss", "bit_accuracy", "kid", "retrieval_top1")
    config.paper = ("", "converges faster, higher training accuracy")
    config.source = "Fig. 13"
    return config
