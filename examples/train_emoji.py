"""Trains the bundled checkpoint's transformer a little further, measures it and draws with it, from Python.

    python examples/train_emoji.py --steps 30 --workdir runs/further     # about two minutes on two CPU cores

The same command again resumes. `infinity-jax train --config emoji --config.train.init_from=bundled ...` does the same.
"""

import argparse
import json
from pathlib import Path

from infinity_jax import InfinityPipeline, config_files
from infinity_jax.training import train_transformer


def main() -> None:
    """Trains, then draws two prompts with the averaged weights."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--config", default="emoji")
    parser.add_argument("--init-from", default="bundled")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--workdir", type=Path, required=True)
    arguments = parser.parse_args()

    config = config_files.load(arguments.config)
    config.train.init_from = arguments.init_from
    config.train.steps = arguments.steps
    config.train.log_every = max(1, arguments.steps // 5)
    state = train_transformer.main(config, arguments.workdir)

    lines = [json.loads(line) for line in (arguments.workdir / "metrics.jsonl").read_text().splitlines()]
    print(f"step {int(state.step)}: loss {lines[-1]['loss']:.4f}")
    # A training's workdir is a checkpoint like any other.
    pipeline = InfinityPipeline.from_pretrained(arguments.workdir)
    for name, picture in zip(("heart", "rocket"), pipeline(["red heart", "rocket"]), strict=True):
        picture.save(arguments.workdir / f"{name}.png")


if __name__ == "__main__":
    main()
