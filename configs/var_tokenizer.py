"""VAR's tokenizer (arXiv 2404.02905): codes of a codebook instead of bits, 256x256 pictures at stride 16.

    infinity-jax train-tokenizer --config configs/var_tokenizer.py --config.data.source=folder:PATH --workdir DIR

The release has no training code for it; losses and rates are those that its authors point to (docs/spec_var.md
section 2) as far as they are known; `--config.train.adversarial=true` adds an adversary. `:64px` is a small one for the
bundled pictures, `:debug` runs two steps of a tiny one.
"""

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


def get_config(argument: str = "") -> ConfigDict:
    """The config; `argument` "64px" makes it small, "debug" tiny."""
    if argument not in ("", "64px", "debug"):
        raise UserError(f"configs/var_tokenizer.py has no {argument!r}; known: 64px, debug, or nothing")
    config = ConfigDict()
    small = TokenizerConfig(
        bits=16,
        quantizer="vq",
        codes=512,
        multipliers=(1, 1),
        encoder_blocks=1,
        decoder_blocks=3,
        pixel_patch=4,
    )
    config.model = section(small if argument else TOKENIZERS["var"])
    # All scales of every picture: codes know no others.
    loss = {"quantizer": 1.0, "scales": "short", "short_scales": 10}
    config.loss = section(
        TokenizerLossConfig(**loss) if argument else TokenizerLossConfig(l1=0.2, features=1.0, **loss)
    )
    if not argument:
        config.loss.feature_network = "lpips"
    # Used with train.adversarial only.
    config.discriminator = section(
        DiscriminatorConfig(
            base_width=64 if argument else 128,
            layers=2 if argument else 3,
            weight=0.01 if argument else 0.4,
            adaptive_weight=not argument,
        ),
        start_step="22%",
        ramp_steps="2%",
    )
    config.optim = section(
        OptimConfig(
            learning_rate=1e-3 if argument else 3e-4,
            schedule="cosine",
            final_fraction=0.02 if argument else 0.3,
            b1=0.9 if argument else 0.5,
            b2=0.95,
            weight_decay=0.005,
            clip=1.0 if argument else 10.0,
            ema_decay=0.995 if argument else 0.9999,
        )
    )
    config.data = section(PictureConfig("emoji_captions", "64px" if argument else "var256"))
    config.train = section(
        TokenizerTrainConfig(
            steps=6000 if argument else 400_000,
            batch_size=16 if argument else 768,
            sample_every=500 if argument else 5000,
            evaluate_every=500 if argument else 5000,
        )
    )
    config.mesh = section(MeshSection())
    if argument == "debug":
        config.model.base_width = 32
        config.train.update(
            dict(steps=2, batch_size=2, log_every=1, checkpoint_every=2, sample_every=0, evaluate_every=0)
        )
    return config
