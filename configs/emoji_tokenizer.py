"""Tokenizer of the bundled checkpoint: 64x64 pictures, stride 8, 32 bits a token.

    infinity-jax train-tokenizer --config configs/emoji_tokenizer.py --workdir runs/emoji_tokenizer

With an adversary from the middle of the run on, or from the first step on after a tokenizer that is trained already:

    infinity-jax train-tokenizer --config configs/emoji_tokenizer.py --config.train.adversarial=true --workdir DIR
    infinity-jax train-tokenizer --config configs/emoji_tokenizer.py --config.train.adversarial=true \
        --config.train.init_from=runs/emoji_tokenizer --config.discriminator.start_step=0 --workdir DIR

`:debug` runs two steps of a smaller model.
"""

from ml_collections import ConfigDict

from infinity_jax.errors import UserError


def get_config(argument: str = "") -> ConfigDict:
    """The config; `argument` "debug" makes it tiny."""
    if argument not in ("", "debug"):
        raise UserError(f"configs/emoji_tokenizer.py has no {argument!r}; known: debug, or nothing")
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
        dict(
            l1=1.0,
            features=0.05,
            feature_network="efficientnet",
            vgg_weights="",
            lpips_weights="",
            quantizer=4.0,
            entropy_group=1,
            scales="dense",
            scale_drop=0.3,
            short_scales=4,
            detach_residuals=True,
        )
    )
    # Used with train.adversarial only.
    config.discriminator = ConfigDict(
        dict(
            base_width=64,
            layers=2,
            loss="hinge",
            weight=0.01,
            adaptive_weight=False,
            start_step="50%",
            ramp_steps="10%",
            lecam=0.05,
            learning_rate_factor=4.0,
        )
    )
    config.optim = ConfigDict(
        dict(
            learning_rate=1e-3,
            warmup_steps=100,
            schedule="cosine",
            final_fraction=0.02,
            drop_at=0.9,
            b1=0.9,
            b2=0.95,
            weight_decay=0.01,
            clip=1.0,
            ema_decay=0.995,
        )
    )
    config.data = ConfigDict(dict(source="emoji_captions", scales="64px", mix=""))
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
            restore_from="",
            init_from="",
            adversarial=False,
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
