"""Quality of the tokenizer against bits per token (paper section 3.2, Table 4), on the bundled pictures.

python benchmarks/vocabulary.py --workdir runs/vocabulary --json vocabulary.json --plot vocabulary.png

Trains one tokenizer for each number of bits, all alike, and evaluates it; about an hour on two cores. The same command
again goes on where it was stopped.
"""

import argparse
from pathlib import Path

from infinity_jax import allocator, config_files, log, train_tokenizer

BITS = (8, 16, 24, 32, 64)
# A quarter of the bundled tokenizer's work a step, and half of its steps.
CHANGES = ["--config.model.base_width=64", "--config.train.sample_every=0", "--config.train.evaluate_every=0"]


def main() -> None:
    """Trains what is missing, then prints the table and writes it."""
    arguments = _arguments()
    allocator.keep_freed_memory()
    log.start()
    for bits in arguments.bits:
        train_tokenizer.main(_config(bits, arguments), arguments.workdir / f"bits_{bits}")


def _config(bits: int, arguments: argparse.Namespace):
    changes = [*CHANGES, f"--config.model.bits={bits}", f"--config.train.steps={arguments.steps}"]
    return config_files.load("configs/emoji_tokenizer.py", changes)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workdir", type=Path, required=True, help="gets a run for each number of bits")
    parser.add_argument("--bits", type=int, nargs="+", default=BITS, help="bits per token")
    parser.add_argument("--steps", type=int, default=3000, help="of each training")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the numbers go as well")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a PNG of quality against bits")
    return parser.parse_args()


if __name__ == "__main__":
    main()
