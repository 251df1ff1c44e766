"""Tokenizer of the bundled checkpoint: 64x64 pictures, stride 8, 32 bits a token.

    infinity-jax train-tokenizer --config configs/emoji_tokenizer.py --workdir runs/emoji_tokenizer

`:debug` runs two steps of a smaller model.
"""

from ml_collections import ConfigDict


def get_config(argument: str = "") -> ConfigDict:
    """The config; `argument` "debug" makes it tiny."""
    config = ConfigDict()
    config.model = ConfigDict(
        dict(
            bits=32,
            base_width=128,
            multipliers=(1, 1),
            encoder_blocks=1,
            decoder_blocks=3,
            pixel_patch=4,
            quantizer="bsq",
            compute_dtype="float32",
        )
    )
    config.loss = ConfigDict(
        dict(l1=1.0, features=0.05, quantizer=4.0, scale_drop=0.3, detach_residuals=True)
    )
    config.optim = ConfigDict(
        dict(
            learning_rate=1e-3,
            warmup_steps=100,
            schedule="cosine",
            final_fraction=0.02,
            b1=0.9,
            b2=0.95,
            weight_decay=0.01,
            clip=1.0,
            ema_decay=0.995,
        )
    )
    config.data = ConfigDict(dict(source="emoji_captions", scales="64px"))
    config.train = ConfigDict(
        dict(
            steps=6000,
            batch_size=16,
            seed=0,
            log_every=50,
            checkpoint_every=500,
            keep_checkpoints=2,
            keep_every=0,
            keep_best="",
            sample_every=500,
            evaluate_every=500,
        )
    )
    config.mesh = ConfigDict(dict(shape="", slices=1, rules=""))
    if argument == "debug":
        config.model.base_width = 32
        config.train.update(
            dict(steps=2, batch_size=2, log_every=1, checkpoint_every=2, sample_every=0, evaluate_every=0)
        )
    return config
