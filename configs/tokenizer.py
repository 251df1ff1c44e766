"""Tokenizer of the paper's size, in its two stages (docs/spec.md section 2): stride 16, 14 to 64 bits a token.

    infinity-jax train-tokenizer --config configs/tokenizer.py:stage1 --config.data.source=folder:PATH \\
        --workdir runs/stage1
    infinity-jax train-tokenizer --config configs/tokenizer.py:stage2 --config.data.source=folder:PATH \\
        --config.train.init_from=runs/stage1 ... --workdir runs/stage2

Stage 1 is 256x256 pixels; in stage 2 each step is one of 256, 512 and 1024, and the discriminator begins anew. Batch
sizes are for 32 devices. With --config.loss.scales=short it is the variant that generates best ("reg" in the release).
`:debug` runs two steps of small pictures and a small model, in the bundled features instead of LPIPS.
"""

from typing import Any

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

STAGES: dict[str, dict[str, Any]] = {
    "stage1": dict(steps=500_000, drop_at=0.9, start_step="10%", ramp_steps="0", mix=""),
    "stage2": dict(
        steps=200_000, drop_at=0.75, start_step="0", ramp_steps="1%", mix="0.06M=256,0.25M=128,1M=64"
    ),
}


def get_config(argument: str = "stage1") -> ConfigDict:
    """The config of a stage; "debug" is a tiny second stage."""
    if argument not in (*STAGES, "debug"):
        raise UserError(f"unknown stage {argument!r}; known: {', '.join(STAGES)}, debug")
    stage: dict[str, Any] = STAGES.get(argument, STAGES["stage2"])
    config = ConfigDict()
    config.model = section(TokenizerConfig(compute_dtype="bfloat16"))
    config.loss = section(TokenizerLossConfig(features=1.0, feature_network="lpips", detach_residuals=False))
    config.discriminator = section(
        DiscriminatorConfig(), start_step=stage["start_step"], ramp_steps=stage["ramp_steps"]
    )
    config.optim = section(
        OptimConfig(
            learning_rate=1e-4,
            warmup_steps=1000,
            schedule="drop",
            drop_at=stage["drop_at"],
            b2=0.95,
            clip=1.0,
        )
    )
    config.data = section(PictureConfig("folder:", "0.06M", mix=stage["mix"]))
    config.train = section(
        TokenizerTrainConfig(
            steps=stage["steps"],
            batch_size=256,
            log_every=100,
            checkpoint_every=5000,
            sample_every=5000,
            evaluate_every=5000,
            adversarial=True,
        )
    )
    config.mesh = section(MeshSection())
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
