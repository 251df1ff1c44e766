"""VAR (arXiv 2404.02905): pictures of a class by next-scale prediction of codes.

    infinity-jax train --config configs/var.py:d16 --config.tokenizer=DIR --config.data.source=folder:PATH \\
        --config.text.classes=0 --workdir DIR

Sizes: d16 d20 d24 d30 (256x256) and d36 (512x512), with the rates of the release's recipes (docs/spec_var.md section
4). Captions are the names of classes, as of a folder of folders, and text.classes=0 takes them from there. `:64px` is a
small model for the bundled pictures, `:debug` runs two steps of a tiny one; both want the tokenizer of
`configs/var_tokenizer.py` with the same argument.
"""

import dataclasses

from ml_collections import ConfigDict

from infinity_jax.config import LABEL_CHANNELS, SampleConfig, TextConfig, TransformerConfig
from infinity_jax.config_files import section
from infinity_jax.data.prepared.config import DataConfig
from infinity_jax.errors import UserError
from infinity_jax.presets import VAR
from infinity_jax.runtime.sharding import MeshSection
from infinity_jax.training.config import TrainConfig
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.optim import OptimConfig
from infinity_jax.training.transformer_step import LossConfig

# Size -> pictures a step, epochs, rate for 256 pictures, last rate over the highest (docs/spec_var.md section 4).
RECIPES = {
    "d16": (768, 200, 1e-4, 0.1),
    "d20": (768, 250, 1e-4, 0.1),
    "d24": (768, 350, 8e-5, 0.01),
    "d30": (1024, 350, 8e-5, 0.01),
    "d36": (768, 350, 8e-5, 0.01),
}
SMALL = ("64px", "debug")
IMAGES = 1_281_167


def get_config(argument: str = "d16") -> ConfigDict:
    """The config of a size."""
    if argument not in (*RECIPES, *SMALL):
        raise UserError(f"configs/var.py has no {argument!r}; known: {', '.join((*RECIPES, *SMALL))}")
    config = ConfigDict()
    # A folder with VAR's tokenizer, or one of `configs/var_tokenizer.py`.
    config.tokenizer = "var_tokenizer"
    small = TransformerConfig(
        layers=6,
        width=256,
        heads=4,
        bits=16,
        head="index",
        codes=512,
        positions="learned+scales:64px",
        condition="class",
        classes=1,  # filled in by the captions, with their names
        text_channels=LABEL_CHANNELS,
        text_length=1,
        adaln="own",
        drop_path=0.0,
        scan_layers=False,
    )
    if argument in SMALL:
        model, scales, sample = small, "64px", SampleConfig(cfg=2.0, guidance="pyramid", top_p=0.96)
        batch, steps, rate, last = 32, 6000, 1e-3, 0.02
    else:
        preset = VAR[f"var-{argument}"]
        model, scales = dataclasses.replace(preset.transformer, remat="block"), preset.scales
        sample = SampleConfig(cfg=preset.cfg, **preset.sample)
        batch, epochs, base, last = RECIPES[argument]
        steps, rate = epochs * IMAGES // batch, base * batch / 256
    config.model = section(model)
    classes = 0 if argument in SMALL else model.classes
    config.text = section(TextConfig("labels", max_length=1, classes=classes))
    config.data = section(DataConfig("emoji_captions", scales))
    config.correction = section(CorrectionConfig(p=0.0))  # codes have no bits to flip
    config.loss = section(LossConfig(token_weights="uniform"))
    config.optim = section(
        OptimConfig(
            learning_rate=rate,
            warmup_steps=steps // 50,
            warmup_start=0.005,
            schedule="linear",
            hold=0.05,
            final_fraction=last,
            b2=0.95,
            weight_decay=0.05,
            final_weight_decay=0.08 if argument in ("d30", "d36") else 0.05,
            clip=2.0,
            ema_decay=0.997 if argument in SMALL else 0.0,
        )
    )
    config.train = section(
        TrainConfig(
            steps=steps, batch_size=batch, checkpoint_every=1000, sample_every=1000, evaluate_every=1000
        )
    )
    config.mesh = section(MeshSection())
    config.sample = section(sample)
    if argument == "debug":
        config.model.update(dict(layers=2, width=64, heads=2))
        config.train.update(
            dict(steps=2, batch_size=2, log_every=1, checkpoint_every=2, sample_every=0, evaluate_every=0)
        )
    return config
