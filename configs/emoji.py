"""Transformer of the bundled checkpoint: captions -> 64x64 pictures.

    infinity-jax train --config configs/emoji.py --workdir runs/emoji

`:index` has the conventional classifier of the paper's Table 5, one among 2^16 classes for a token, for comparison
with `--config.model.bits=16` of the bitwise one. Both need a tokenizer of 16 bits:

    infinity-jax train-tokenizer --config configs/emoji_tokenizer.py --config.model.bits=16 --workdir runs/tokenizer_16
    infinity-jax train --config configs/emoji.py:index --config.tokenizer=runs/tokenizer_16 --workdir runs/emoji_index

`:debug` runs two steps of a tiny model.
"""

from ml_collections import ConfigDict

from infinity_jax.config import SampleConfig, TextConfig, TransformerConfig
from infinity_jax.config_files import section
from infinity_jax.data.prepared.config import DataConfig
from infinity_jax.errors import UserError
from infinity_jax.runtime.sharding import MeshSection
from infinity_jax.training.config import TrainConfig
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.optim import OptimConfig
from infinity_jax.training.transformer_step import LossConfig


def get_config(argument: str = "") -> ConfigDict:
    """The config; `argument` "index" makes it the conventional classifier, "debug" makes it tiny."""
    if argument not in ("", "index", "debug"):
        raise UserError(f"configs/emoji.py has no {argument!r}; known: index, debug, or nothing")
    config = ConfigDict()
    # A folder with a tokenizer: "bundled", a folder of `infinity-jax export`, or a workdir of train-tokenizer.
    config.tokenizer = "bundled"
    config.model = section(
        TransformerConfig(
            layers=6,
            width=256,
            heads=4,
            text_channels=384,
            text_length=32,
            drop_path=0.0,
            scan_layers=False,
        )
    )
    config.text = section(TextConfig("minilm", max_length=32))
    config.data = section(DataConfig("emoji_captions", "64px"))
    config.correction = section(CorrectionConfig(p=0.15))
    config.loss = section(LossConfig())
    config.optim = section(
        OptimConfig(
            learning_rate=1e-3,
            schedule="cosine",
            final_fraction=0.02,
            weight_decay=0.02,
            ema_decay=0.997,
        )
    )
    config.train = section(
        TrainConfig(
            steps=6000,
            batch_size=32,
            checkpoint_every=1000,
            sample_every=1000,
            evaluate_every=1000,
        )
    )
    config.mesh = section(MeshSection())
    config.sample = section(SampleConfig(cfg=4.0, tau=0.2))
    if argument == "index":
        config.model.update(dict(bits=16, head="index"))
        # 2^16 logits for each of a picture's 130 tokens: 1 GB for the whole batch at once.
        config.train.microbatches = 4
    if argument == "debug":
        config.model.update(dict(layers=2, width=64, heads=2))
        config.train.update(
            dict(steps=2, batch_size=2, log_every=1, checkpoint_every=2, sample_every=0, evaluate_every=0)
        )
    return config
