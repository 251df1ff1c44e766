"""`infinity-jax train`, `train-tokenizer` and `train-upscaler`: a config, a workdir, and the processes of the run."""

import argparse

from infinity_jax.cli import options
from infinity_jax.cli.command import command

TOKENIZER_EXAMPLES = """infinity-jax train-tokenizer --config configs/emoji_tokenizer.py --workdir runs/tokenizer
  infinity-jax train-tokenizer --config configs/emoji_tokenizer.py:debug --workdir /tmp/debug"""
UPSCALER_EXAMPLES = """infinity-jax train-upscaler --config configs/upscaler.py:64px --workdir runs/upscaler_1
  infinity-jax train-upscaler --config configs/upscaler.py:64px,2 --config.train.init_from=runs/upscaler_1 \
--workdir runs/upscaler_2"""
EXAMPLES = """infinity-jax train --config configs/emoji.py --workdir runs/emoji
  infinity-jax train --config configs/emoji.py --config.data.source=folder:my_pictures \
--config.train.steps=2000 --workdir runs/mine
  infinity-jax train --config configs/emoji_progressive.py --workdir runs/stages"""


def _add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--config",
        type=options.text,
        required=True,
        metavar="FILE[:ARGUMENT]",
        help="a Python config file, or one that is packed by its name, like emoji:debug",
    )
    add(
        "--workdir",
        type=options.output_folder,
        required=True,
        metavar="DIR",
        help="gets checkpoints, metrics.jsonl, sheets; resumed if it has any",
    )
    add(
        "--minutes",
        type=options.minutes,
        metavar="N",
        help="stop after N minutes of training, with a checkpoint: short for --config.train.minutes=N",
    )
    options.add_processes(command)


def _changes(arguments: argparse.Namespace, overrides: list[str]) -> list[str]:
    """Adds the change of the config that --minutes stands for."""
    return overrides + [f"--config.train.minutes={arguments.minutes}"] * (arguments.minutes is not None)


@command(
    "train-tokenizer",
    "train the picture tokenizer; the same command again resumes",
    TOKENIZER_EXAMPLES,
    _add_arguments,
    takes_overrides=True,
)
def train_tokenizer(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Trains a tokenizer."""
    from infinity_jax import config_files

    # Before jax is imported: a mistake in the config is answered at once.
    config = config_files.load(arguments.config, _changes(arguments, overrides))
    from infinity_jax.runtime import distributed
    from infinity_jax.training import train_tokenizer

    distributed.start(options.processes_of(arguments))
    train_tokenizer.main(config, arguments.workdir)


@command(
    "train-upscaler",
    "train the network that makes small pictures large, on a system that draws; the same command again resumes",
    UPSCALER_EXAMPLES,
    _add_arguments,
    takes_overrides=True,
)
def train_upscaler(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Trains an upscaler."""
    from infinity_jax import config_files

    config = config_files.load(arguments.config, _changes(arguments, overrides))
    from infinity_jax.runtime import distributed
    from infinity_jax.training import train_upscaler

    distributed.start(options.processes_of(arguments))
    train_upscaler.main(config, arguments.workdir)


@command(
    "train",
    "train the transformer; the same command again resumes",
    EXAMPLES,
    _add_arguments,
    takes_overrides=True,
)
def train(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """Trains a transformer, in one go or stage by stage."""
    from infinity_jax import config_files

    config = config_files.load(arguments.config, _changes(arguments, overrides), stages=True)
    from infinity_jax.runtime import distributed
    from infinity_jax.training import stages, train_transformer

    distributed.start(options.processes_of(arguments))
    trainer = stages if "stages" in config else train_transformer
    trainer.main(config, arguments.workdir)
