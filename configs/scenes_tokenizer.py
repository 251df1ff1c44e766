"""Tokenizer of ray-traced scenes: 64x64 pictures, stride 8, 32 bits a token; no picture is seen twice.

    infinity-jax train-tokenizer --config configs/scenes_tokenizer.py --workdir runs/scenes_tokenizer

`:debug` runs two steps of a smaller model.
"""

from ml_collections import ConfigDict

from infinity_jax.config import TokenizerConfig
from infinity_jax.config_files import section
from infinity_jax.data.resolutions import PictureConfig
from infinity_jax.errors import UserError
from infinity_jax.runtime.sharding import MeshSection
from infinity_jax.training.config import TokenizerTrainConfig
from infinity_jax.training.discriminator import DiscriminatorConfig
from infinity_jax.training.optim import OptimConfig
from infinity_jax.training.tokenizer_step import TokenizerLossConfig


def get_config(argument: str = "") -> ConfigDict:
    """The config; `argument` "debug" makes it tiny."""
    if argument not in ("", "debug"):
        raise UserError(f"configs/scenes_tokenizer.py has no {argument!r}; known: debug, or nothing")
    config = ConfigDict()
    config.model = section(
        TokenizerConfig(multipliers=(1, 1), encoder_blocks=1, decoder_blocks=3, pixel_patch=4)
    )
    config.loss = section(TokenizerLossConfig(scale_drop=0.3, short_scales=4))
    config.discriminator = section(
        DiscriminatorConfig(base_width=64, layers=2, weight=0.01, learning_rate_factor=4.0),
        start_step="50%",
        ramp_steps="10%",
    )
    config.optim = section(
        OptimConfig(
            learning_rate=1e-3,
            schedule="cosine",
            final_fraction=0.02,
            b2=0.95,
            clip=1.0,
            ema_decay=0.995,
        )
    )
    config.data = section(PictureConfig("scenes", "64px"))
    config.train = section(
        TokenizerTrainConfig(steps=6000, batch_size=16, sample_every=1000, evaluate_every=1000)
    )
    config.mesh = section(MeshSection())
    if argument == "debug":
        config.model.base_width = 32
        config.data.scales = "32px"
        config.train.update(
            dict(steps=2, batch_size=2, log_every=1, checkpoint_every=2, sample_every=0, evaluate_every=0)
        )
    return config
