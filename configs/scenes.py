"""Transformer of ray-traced scenes: captions of GenEval's six tasks -> 64x64 pictures; no picture is seen twice.

    infinity-jax train --config configs/scenes.py --config.tokenizer=runs/scenes_tokenizer --workdir runs/scenes

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
    """The config; `argument` "debug" makes it tiny."""
    if argument not in ("", "debug"):
        raise UserError(f"configs/scenes.py has no {argument!r}; known: debug, or nothing")
    config = ConfigDict()
    config.tokenizer = "runs/scenes_tokenizer"
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
    config.data = section(DataConfig("scenes", "64px"))
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
    config.sample = section(SampleConfig(cfg=4.0, tau=0.5))
    if argument == "debug":
        config.model.update(dict(layers=2, width=64, heads=2))
        config.tokenizer = "bundled"
        config.train.update(
            dict(steps=2, batch_size=2, log_every=1, checkpoint_every=2, sample_every=0, evaluate_every=0)
        )
    return config
