"""BSQ-ViT (arXiv 2406.07548): a tokenizer of one scale, two ViTs, trained against StyleGAN's discriminator.

    infinity-jax train-tokenizer --config configs/bsq_vit.py:b18 --config.data.source=folder:PATH --workdir DIR

`:b18` and `:b36` are 256x256 pictures, 18 and 36 bits a token; `:128` is 128x128 and 18 bits. Batch sizes are the
release's, for 8 devices. Its recipe is docs/spec_bsq_vit.md section 3; R1 is off, as it trains nothing in the release:
`--config.discriminator.r1=10` has one that does. `:64px` is a small one for the bundled pictures, with the bundled
EfficientNet instead of LPIPS and without an adversary; `:debug` runs two steps of a tiny one, with an adversary.
"""

from typing import Any

from ml_collections import ConfigDict

from infinity_jax.config import TokenizerConfig
from infinity_jax.config_files import section
from infinity_jax.data.resolutions import PictureConfig
from infinity_jax.errors import UserError
from infinity_jax.presets import TOKENIZERS
from infinity_jax.runtime.sharding import MeshSection
from infinity_jax.training.config import TokenizerTrainConfig
from infinity_jax.training.discriminator import DiscriminatorConfig
from infinity_jax.training.optim import OptimConfig
from infinity_jax.training.tokenizer_step import TokenizerLossConfig

PUBLISHED = {"b18": "bsqvit-b18", "b36": "bsqvit-b36", "128": "bsqvit-128"}
BATCH = 256


def get_config(argument: str = "b18") -> ConfigDict:
    """The config of a published size; "64px" is small, "debug" tiny."""
    if argument not in (*PUBLISHED, "64px", "debug"):
        raise UserError(f"unknown size {argument!r}; known: {', '.join(PUBLISHED)}, 64px, debug")
    if argument not in PUBLISHED:
        return _small(tiny=argument == "debug")
    model = TOKENIZERS[PUBLISHED[argument]]
    config = ConfigDict()
    config.model = section(model, compute_dtype="bfloat16")
    config.loss = section(
        TokenizerLossConfig(
            clip=True,
            features=0.1,
            feature_network="lpips",
            quantizer=0.1,
            quantizer_start=0.3,
            quantizer_ramp=2000,
            commitment=0.0,
            entropy=1.0,
            inverse_temperature=1.0,
            entropy_group=9 if argument == "128" else 1,
            scales="short",
        )
    )
    config.discriminator = section(
        DiscriminatorConfig(
            architecture="stylegan", loss="non-saturating", weight=0.1, lecam=0.0, learning_rate_factor=1.0
        )
    )
    config.optim = section(
        OptimConfig(
            learning_rate=4e-7 * BATCH,
            warmup_steps=5000,
            warmup_start=0.1,
            schedule="cosine",
            final_fraction=0.5,
            b2=0.99,
            weight_decay=1e-4,
            decay_all=True,
            clip=1e9,  # none
        )
    )
    config.data = section(PictureConfig("folder:", str(model.side // model.stride)))
    config.train = section(
        TokenizerTrainConfig(
            steps=1_000_000,
            batch_size=BATCH,
            log_every=100,
            checkpoint_every=5000,
            sample_every=5000,
            evaluate_every=5000,
            adversarial=True,
        )
    )
    config.mesh = section(MeshSection())
    return config


def _small(tiny: bool) -> ConfigDict:
    config: Any = get_config("b18")
    model = TokenizerConfig(
        bits=32,
        base_width=32 if tiny else 192,
        multipliers=(1,),
        encoder_blocks=1 if tiny else 4,
        decoder_blocks=1 if tiny else 4,
        pixel_patch=8,
        architecture="vit",
        side=64,
        heads=2 if tiny else 3,
        hidden=64 if tiny else 768,
        scaled_gradient=True,
    )
    config.model = section(model)
    config.loss.update(dict(features=0.05, feature_network="efficientnet", quantizer_ramp=500))
    config.optim.update(
        dict(learning_rate=5e-4, warmup_steps=200, final_fraction=0.02, clip=1.0, ema_decay=0.995)
    )
    config.data = section(PictureConfig("emoji_captions", "8"))
    config.discriminator.update(dict(channel_base=256 if tiny else 2048, channel_max=32 if tiny else 128))
    config.train = section(
        TokenizerTrainConfig(
            steps=6000, batch_size=16, sample_every=500, evaluate_every=500, adversarial=tiny
        )
    )
    if tiny:
        config.optim.warmup_steps = 1
        config.train.update(
            dict(steps=2, batch_size=4, log_every=1, checkpoint_every=2, sample_every=0, evaluate_every=0)
        )
    return config
