"""Tokenizer of the paper's size, in its two stages (spec section 2): stride 16, 14 to 64 bits a token.

    infinity-jax train-tokenizer --config configs/tokenizer.py:stage1 --config.data.source=folder:PATH \\
        --config.loss.vgg_weights=vgg16-397923af.pth --config.loss.lpips_weights=vgg.pth --workdir runs/stage1
    infinity-jax train-tokenizer --config configs/tokenizer.py:stage2 --config.data.source=folder:PATH \\
        --config.train.init_from=runs/stage1 ... --workdir runs/stage2

Stage 1 is 256x256 pixels; in stage 2 each step is one of 256, 512 and 1024. Batch sizes are for 32 devices. With
--config.loss.scales=short it is the variant that generates best ("reg" in the release). `:debug` runs two steps of
small pictures and a small model, in the bundled features instead of LPIPS.
"""

from ml_collections import ConfigDict

from infinity_jax.errors import UserError

STAGES = {
    "stage1": dict(steps=500_000, drop_at=0.9, start_step=50_000, mix=""),
    "stage2": dict(steps=200_000, drop_at=0.75, start_step=0, mix="0.06M=256,0.25M=128,1M=64"),
}


def get_config(argument: str = "stage1") -> ConfigDict:
    """The config of a stage; "debug" is a tiny second stage."""
    if argument not in (*STAGES, "debug"):
        raise UserError(f"unknown stage {argument!r}; known: {', '.join(STAGES)}, debug")
    stage = STAGES.get(argument, STAGES["stage2"])
    config = ConfigDict()
    config.model = ConfigDict(
        dict(
            bits=32,
            base_width=128,
            multipliers=(1, 2, 4, 4, 4),
            encoder_blocks=2,
            decoder_blocks=3,
            pixel_patch=1,
            patchify=1,
            quantizer="bsq",
            compute_dtype="bfloat16",
        )
    )
    config.loss = ConfigDict(
        dict(
            l1=1.0,
            features=1.0,
            feature_network="lpips",
            vgg_weights="",
            lpips_weights="",
            quantizer=4.0,
            entropy_group=1,
            scales="dense",
            scale_drop=0.5,
            short_scales=7,
            detach_residuals=False,
        )
    )
    config.discriminator = ConfigDict(
        dict(
            base_width=128,
            layers=3,
            loss="hinge",
            weight=0.3,
            adaptive_weight=False,
            start_step=stage["start_step"],
            ramp_steps=0,
            lecam=0.05,
            learning_rate_factor=2.0,
        )
    )
    config.optim = ConfigDict(
        dict(
            learning_rate=1e-4,
            warmup_steps=1000,
            schedule="drop",
            final_fraction=0.1,
            drop_at=stage["drop_at"],
            b1=0.9,
            b2=0.95,
            weight_decay=0.01,
            clip=1.0,
            ema_decay=0.999,
        )
    )
    config.data = ConfigDict(dict(source="folder:", scales="0.06M", mix=stage["mix"]))
    config.train = ConfigDict(
        dict(
            steps=stage["steps"],
            batch_size=256,
            seed=0,
            log_every=100,
            checkpoint_every=5000,
            keep_checkpoints=2,
            keep_every=0,
            keep_best="",
            sample_every=5000,
            evaluate_every=5000,
            init_from="",
            adversarial=True,
        )
    )
    config.mesh = ConfigDict(dict(shape="", slices=1, rules=""))
    if argument == "debug":
        config.model.update(dict(base_width=32, multipliers=(1, 1, 1, 1), encoder_blocks=1, decoder_blocks=1))
        config.model.compute_dtype = "float32"
        config.loss.feature_network = "efficientnet"
        config.loss.features = 0.05
        config.discriminator.update(dict(base_width=32, layers=2))
        config.data.update(dict(source="emoji_captions", scales="64px", mix="32px=4,64px=2"))
        config.optim.warmup_steps = 1
        config.train.update(
            dict(steps=2, batch_size=4, log_every=1, checkpoint_every=2, sample_every=0, evaluate_every=0)
        )
    return config
