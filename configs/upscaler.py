"""Super-resolution (NSARM, arXiv 2510.00820) on a system that draws: its first scales come from a small picture.

    infinity-jax train-upscaler --config configs/upscaler.py:64px --workdir runs/upscaler_1
    infinity-jax train-upscaler --config configs/upscaler.py:64px,2 --config.train.init_from=runs/upscaler_1 \\
        --workdir runs/upscaler_2
    infinity-jax upscale small.png --checkpoint runs/upscaler_2 --out out/

Stage 1 trains the network that gives the first scales, stage 2 (`,2`) it and the transformer. `:64px` makes the
bundled system's pictures of 64 pixels from 16, `:64px_x2` from 32; `:nsarm` is the release's system of 8 billion
parameters, 1024 pixels from 256, with what is known of its recipe (docs/spec_nsarm.md section 5); `:debug` runs two
steps of a tiny one.
"""

from ml_collections import ConfigDict

from infinity_jax.config import SampleConfig, UpscalerConfig
from infinity_jax.config_files import section
from infinity_jax.data.degradation.process import DegradationConfig
from infinity_jax.data.resolutions import PictureConfig
from infinity_jax.errors import UserError
from infinity_jax.presets import UPSCALERS
from infinity_jax.runtime.sharding import MeshSection
from infinity_jax.training.config import TrainConfig
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.optim import OptimConfig
from infinity_jax.training.transformer_step import LossConfig

SIZES = ("64px", "64px_x2", "nsarm", "debug")
# Real-ESRGAN's numbers are for low-quality pictures of 256 pixels, and leave nothing of 16.
MILD = DegradationConfig(
    sharpen=False,
    rounds=1,
    kernel=7,
    sigma_1=(0.2, 1.5),
    factors_1=(0.5, 1.2),
    noise_1=(1.0, 10.0),
    poisson_1=(0.05, 0.5),
    jpeg_2=(60.0, 95.0),
    sinc=0.3,
)


def get_config(argument: str = "64px") -> ConfigDict:
    """The config; `argument` is a size, and ",2" after it makes it stage 2's."""
    size, _, stage = argument.partition(",")
    if size not in SIZES or stage not in ("", "1", "2"):
        raise UserError(
            f"configs/upscaler.py has no {argument!r}; known: {', '.join(SIZES)}, with ,2 for stage 2"
        )
    config = ConfigDict()
    # A folder with the system whose pictures are upscaled, or "bundled".
    config.system = "8b" if size == "nsarm" else "bundled"
    config.stage = int(stage or 1)
    small = UpscalerConfig(
        bits=32,
        side=4 if size == "64px_x2" else 8,
        sizes=(1, 2, 3, 4),
        widths=(64, 64, 128, 128),
        layers=(2, 2, 3, 3),
        heads=(4, 4, 4, 4),
        extractor=(64, 128),
        factor=2 if size == "64px_x2" else 4,
    )
    config.upscaler = section(UPSCALERS["nsarm"] if size == "nsarm" else small)
    config.degradation = section(DegradationConfig() if size == "nsarm" else MILD)
    released = PictureConfig("records:shards", "1M")
    config.data = section(released if size == "nsarm" else PictureConfig("emoji_captions", "64px"))
    config.correction = section(CorrectionConfig(p=0.0, scales=5))
    config.loss = section(LossConfig(token_weights="uniform", caption_drop=0.0))
    peak = 3e-4 if config.stage == 2 else 1e-3
    if size == "nsarm":
        peak = 1e-5 if config.stage == 2 else 1e-4
    config.optim = section(
        OptimConfig(
            learning_rate=peak,
            warmup_steps=100,
            schedule="cosine",
            final_fraction=0.02,
            b2=0.97,
            clip=1.0,
            ema_decay=0.997 if size != "nsarm" else 0.0,
        )
    )
    steps = (2000, 1500) if size != "nsarm" else (200_000, 76_000)
    config.train = section(
        TrainConfig(
            steps=steps[config.stage - 1],
            batch_size=256 if size == "nsarm" else 32,
            checkpoint_every=500,
            evaluate_every=500,
        )
    )
    config.mesh = section(MeshSection())
    config.sample = section(SampleConfig(cfg=1.0, tau=0.5, top_p=0.97, guidance="none"))
    if size == "debug":
        config.upscaler.update(
            dict(sizes=(1, 2), widths=(16, 16), layers=(1, 2), heads=(2, 2), extractor=(8, 8))
        )
        config.train.update(dict(steps=2, batch_size=2, log_every=1, checkpoint_every=2, evaluate_every=2))
    return config
