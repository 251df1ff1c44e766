"""The infinite-vocabulary classifier against the conventional one, 2^8 classes (paper Table 5, with 2^16).

    infinity-jax ablate classifier --workdir runs/classifier

Trains a tokenizer of 8 bits first, then 6 transformers. The paper's 16 bits, for more memory than a laptop has:
"--config.tokenizers=('16: configs/emoji_tokenizer.py model.bits=16',)" and in --config.changes model.bits=16 and its
tokenizer.
"""

from pathlib import Path

from ml_collections import ConfigDict

TOKENIZER = Path(__file__).parents[1] / "emoji_tokenizer.py"


def get_config() -> ConfigDict:
    """The grid; its keys are documented in infinity_jax/tools/scaling/grid.py."""
    config = ConfigDict(sort_keys=False)
    config.base = "emoji"
    config.tokenizers = (
        f"8: {TOKENIZER} model.bits=8 model.base_width=64 loss.quantizer=1.0 train.steps=1500 "
        "train.sample_every=0 train.evaluate_every=0",
    )
    config.changes = (
        "tokenizer={workdir}/tokenizers/8 model.bits=8 "
        "model.layers=4 model.width=128 model.heads=2 optim.learning_rate=2e-3 optim.warmup_steps=20 "
        "optim.ema_decay=0.0 train.steps=300 train.log_every=10 train.evaluate_every=100 train.checkpoint_every=300 "
        "train.keep_checkpoints=1 train.sample_every=0 sample.cfg=3.0 sample.tau=1.0"
    )
    config.axes = ConfigDict(
        dict(
            classifier=("conventional: model.head=index", "IVC: model.head=bits"),
            seed=("0: train.seed=0", "1: train.seed=1", "2: train.seed=2"),
        ),
        sort_keys=False,
    )
    config.pictures = 512
    config.hardware = ConfigDict(dict(chip="", count=1, utilisation=0.3))
    config.compare = "classifier"
    config.columns = (
        "parameters",
        "validation_loss",
        "bit_accuracy",
        "kid",
        "retrieval_top1",
        "retrieval_top5",
    )
    config.paper = ("124M, 0.184, 4.49, 0.79, 31.95", "0.65M, 0.180, 3.83, 0.91, 32.31")
    config.source = "Table 5: classifier's parameters, reconstruction loss, FID, ImageReward, HPSv2.1"
    return config
