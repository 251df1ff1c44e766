"""The published sizes, trained as in the paper (docs/spec.md sections 4 to 6), with Flan-T5-XL and the d=32 tokenizer.

    infinity-jax train --config configs/t2i.py:2b,0.06M --config.tokenizer=DIR --config.text.path=DIR/text_encoder \
        --config.data.source=folder:PATH --workdir runs/2b

The argument is a size and a stage. Sizes: 125m 361m 940m 2.2b 4.7b (the scaling study, Table 6), 2b, 8b (the released
checkpoints). Stages: 0.06M (256x256, if none is named), 0.25M (512x512) and 1M (1024x1024), each begun with
--config.train.init_from of the one before. DIR is a folder of `infinity-jax convert` with the tokenizer and the text
encoder. configs/pods/ has the same with a mesh for each size and stage.

`:debug` runs two steps of a tiny model on the emoji pictures, with the parts of the bundled checkpoint, or on any
shards of `infinity-jax prepare --out DIR`, in all aspect ratios, with --config.data.source=records:DIR.
"""

import dataclasses

from ml_collections import ConfigDict

from infinity_jax.config import SampleConfig, TextConfig, TransformerConfig
from infinity_jax.config_files import section
from infinity_jax.data.prepared.config import DataConfig
from infinity_jax.errors import UserError
from infinity_jax.presets import preset
from infinity_jax.runtime.sharding import MeshSection
from infinity_jax.training.config import TrainConfig
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.optim import OptimConfig
from infinity_jax.training.transformer_step import LossConfig

# Stage -> steps, batch size and learning rate (docs/spec.md section 6).
STAGES = {
    "0.06M": (150_000, 4096, 6e-5),
    "0.25M": (110_000, 4096, 6e-5),
    "1M": (60_000, 2048, 2e-5),
}


def get_config(argument: str = "2b") -> ConfigDict:
    """The config of the size and stage `argument`, like "2b,0.06M"."""
    size, _, stage = argument.partition(",")
    debug = size == "debug"
    stage = stage or ("0.02M" if debug else "0.06M")
    if not debug and stage not in STAGES:
        raise UserError(f"unknown stage {stage!r}; known: {', '.join(STAGES)}")
    steps, batch_size, learning_rate = (2, 2, 6e-5) if debug else STAGES[stage]
    small = TransformerConfig(layers=2, width=64, heads=2, text_channels=384, text_length=32)
    model = small if debug else preset(size).transformer
    config = ConfigDict()
    config.tokenizer = "bundled"
    config.model = section(dataclasses.replace(model, remat="block"))
    config.text = section(TextConfig("minilm" if debug else "t5", model.text_length))
    config.data = section(DataConfig("emoji_captions", stage))
    config.correction = section(CorrectionConfig(p=0.3))
    config.loss = section(LossConfig())
    config.optim = section(
        OptimConfig(
            learning_rate=learning_rate,
            schedule="constant",
            final_fraction=1.0,
            weight_decay=0.02,
            ema_decay=0.9999,
        )
    )
    config.train = section(
        TrainConfig(
            steps=steps,
            batch_size=batch_size,
            log_every=1 if debug else 50,
            checkpoint_every=2 if debug else 1000,
            sample_every=0 if debug else 5000,
            evaluate_every=0 if debug else 5000,
        )
    )
    config.mesh = section(MeshSection())
    config.sample = section(SampleConfig(cfg=4.0, tau=1.0))
    return config
