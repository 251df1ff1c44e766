"""The published sizes, trained as in the paper (spec sections 4 to 6), with Flan-T5-XL and the d=32 tokenizer.

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

from infinity_jax.config import TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.presets import preset

# Stage -> steps, batch size and learning rate (spec section 6).
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
    config.model = ConfigDict(dataclasses.asdict(dataclasses.replace(model, remat="block")))
    config.text = ConfigDict(dict(encoder="minilm" if debug else "t5", max_length=model.text_length, path=""))
    # The keys after `scales` are for prepared shards, see infinity_jax/data/prepared/config.py.
    config.data = ConfigDict(
        dict(
            source="emoji_captions",
            scales=stage,
            validation="",
            min_side=0,
            min_caption=0,
            max_caption=0,
            scores="",
            long_captions=0.8,
            cut_captions=0.0,
        )
    )
    config.correction = ConfigDict(dict(p=0.3, scales=13, requantise=True))
    config.loss = ConfigDict(dict(token_weights="by_scale", label_smoothing=0.0, caption_drop=0.1))
    config.optim = ConfigDict(
        dict(
            learning_rate=learning_rate,
            warmup_steps=100,
            schedule="constant",
            final_fraction=1.0,
            b1=0.9,
            b2=0.97,
            weight_decay=0.02,
            clip=5.0,
            ema_decay=0.9999,
        )
    )
    config.train = ConfigDict(
        dict(
            steps=steps,
            batch_size=batch_size,
            seed=0,
            log_every=1 if debug else 50,
            checkpoint_every=2 if debug else 1000,
            keep_checkpoints=2,
            keep_every=0,
            keep_best="",
            microbatches=1,
            sample_every=0 if debug else 5000,
            evaluate_every=0 if debug else 5000,
            restore_from="",
            init_from="",
        )
    )
    config.mesh = ConfigDict(dict(shape="", slices=1, rules=""))
    config.sample = ConfigDict(dict(cfg=4.0, tau=1.0, top_p=1.0, guidance="logits"))
    return config
