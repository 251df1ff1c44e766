"""Stages of the tiny linear model, through the real stages and loop: stage_run.py WORKDIR [STAGE STEP].

With STAGE and STEP the process is killed, without warning, when the batch of that step is asked for.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from helpers import toy_run
from ml_collections import ConfigDict

from infinity_jax import config_files
from infinity_jax.config import TransformerConfig
from infinity_jax.config_files import from_dict
from infinity_jax.training import loop, stages
from infinity_jax.training.config import TrainConfig

STEPS = {"first": 4, "second": 8, "third": 5}
MODEL = TransformerConfig(layers=1, width=64, heads=2, text_channels=384, text_length=8)


def config(**steps: int) -> Any:
    """Three stages; `steps` changes the length of some."""
    train = dict(
        steps=1, batch_size=8, seed=0, log_every=2, checkpoint_every=3, init_from="", restore_from=""
    )
    base = ConfigDict(
        dict(train=train, data=dict(scales="64px", source="x"), tokenizer="", model={}, extra=1)
    )
    changes = {name: {"train": {"steps": n}} for name, n in (STEPS | steps).items()}
    return config_files.with_stages(base, changes)


def toy(batches_of=lambda name: toy_run.batches) -> Any:
    """Stands for the modules `run_config` and `train_transformer`, with batches by a stage's name."""

    def read_config(config):
        train = from_dict(TrainConfig, config.train, "train")
        return SimpleNamespace(train=train, model=MODEL, data=SimpleNamespace(scales=config.data.scales))

    def main(config, workdir):
        return loop.run(
            workdir,
            read_config(config).train,
            toy_run.train_step(),
            toy_run.data(batches_of(Path(workdir).name)),
            config.to_dict(),
            load_params=toy_run.load_params,
        )

    return SimpleNamespace(read_config=read_config, main=main, fitting_tokenizer=lambda *parts: None)


if __name__ == "__main__":
    folder, stage, step = sys.argv[1:]
    stages.run_config = stages.train_transformer = toy(
        lambda name: toy_run.killed_at(int(step)) if name == stage else toy_run.batches
    )
    stages.main(config(), folder)
