"""How much the loss of a step varies with its flip rates: one rate for the batch, or one for each picture.

python experiments/draws_per_picture.py --json draws.json
python experiments/draws_per_picture.py --train runs/draws --json training.json

Takes the bundled checkpoint and one batch of its training pictures, and draws the flips of the batch again and again.
With --train, `configs/emoji.py` is trained from fresh weights in both ways, at three seeds: the mean loss of the last
50 steps, and how much the loss of a step differs from that of the next.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.checkpoints import pretrained
from infinity_jax.cli.main import main as main_of_commands
from infinity_jax.data import pictures, sources
from infinity_jax.runtime import seeds, start_up
from infinity_jax.scales import make_schedule
from infinity_jax.text.encoder import load_text_encoder
from infinity_jax.tokenizer.bsq import BinaryQuantizer
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.training import correction, run_log
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.transformer_step import LossConfig, draw_examples, make_loss
from infinity_jax.transformer.transformer import Transformer


def main() -> None:
    """Measures the mean and the deviation of the loss over draws, prints both and writes them."""
    arguments = _arguments()
    if arguments.train:
        report = {name: _trained(name, arguments) for name in DRAWS}
        print(json.dumps(report, indent=1))
    else:
        report = _losses_of_a_batch(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def _losses_of_a_batch(arguments: argparse.Namespace) -> dict[str, Any]:
    start_up.keep_freed_memory()
    loss_of, params = _loss_of(arguments.pictures)
    config = CorrectionConfig(p=arguments.p)
    report = {}
    for name, draw in DRAWS.items():
        loss = jax.jit(lambda params, key, draw=draw: loss_of(params, key, draw, config))
        losses = np.array([float(loss(params, jax.random.key(seed))) for seed in range(arguments.draws)])
        report[name] = {"mean": losses.mean(), "deviation": losses.std(ddof=1), "draws": len(losses)}
        print(
            f"rates {name}: loss {losses.mean():.4f}, deviation {losses.std(ddof=1):.4f} over {len(losses)} draws"
        )
    return report


def _trained(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains at each seed; the mean over seeds, their deviation, and a step's own noise."""
    correction.draw_flips = DRAWS[name]
    ends, noise = [], []
    for seed in range(3):
        workdir = arguments.train / f"{name.split()[-1]}_{seed}"
        values = {"steps": arguments.steps, "seed": seed, "log_every": 1, "sample_every": 0}
        values["evaluate_every"] = arguments.steps
        options = [f"--config.train.{key}={value}" for key, value in values.items()]
        if code := main_of_commands(["train", "--config=emoji", f"--workdir={workdir}", *options]):
            raise SystemExit(code)
        losses = np.array([line["loss"] for line in run_log.read_lines(workdir / "metrics.jsonl")])
        ends.append(losses[-50:].mean())
        noise.append(np.diff(losses[-100:]).std() / np.sqrt(2))
    return {"mean": np.mean(ends), "deviation of seeds": np.std(ends, ddof=1), "of steps": np.mean(noise)}


def for_the_batch(key, schedule, batch: int, bits: int, config: CorrectionConfig):
    """Draws flips as `correction.draw_flips`, with one probability for all pictures of a scale."""
    one, each = (jax.random.fold_in(key, number) for number in range(2))
    rates_K = jax.random.randint(one, (schedule.n_scales,), 0, round(config.p * 100) + 1) / 100.0
    return tuple(
        jax.random.bernoulli(jax.random.fold_in(each, k), rates_K[k], (batch, h, w, bits))
        for k, (h, w) in enumerate(schedule.sizes)
    )


DRAWS = {"for the batch": for_the_batch, "for each picture": correction.draw_flips}


def _loss_of(count: int) -> tuple[Callable, Any]:
    """Makes the function (params, key, draw of flips, config) -> loss of the first `count` training pictures."""
    model = pretrained.load_model("bundled")
    tokenizer, schedule = model.tokenizer, make_schedule(model.tokenizer.scales)
    source = sources.open_source("emoji_captions", "train")
    records = [source[i] for i in range(count)]
    image = pictures.to_float(pictures.decode_squares(records, tokenizer.side))
    # Parameters as arguments: as constants of the program they take the compiler minutes.
    encode = jax.jit(
        lambda params, image: Tokenizer(tokenizer.config).apply({"params": params}, image, method="encode")
    )
    features, encoder = encode(tokenizer.params, image), load_text_encoder("minilm", 32, "")
    text, text_mask = encoder.encode([record["caption"] for record in records])
    loss_config = LossConfig(caption_drop=0.0)
    loss_fn = make_loss(Transformer(model.config), schedule, loss_config)

    def loss_of(params, key, draw, config):
        flips = draw(seeds.stream(key, "flip bits", 0), schedule, count, tokenizer.config.bits, config)
        inputs, bits = correction.self_correction(
            features, flips, schedule, BinaryQuantizer(tokenizer.config.quantizer)
        )
        examples = {
            "inputs": inputs,
            "bits": bits,
            "text": jnp.asarray(text),
            "text_mask": jnp.asarray(text_mask),
        }
        return loss_fn(params, examples | draw_examples(key, 0, count, model.config, loss_config))[0]

    return loss_of, model.params


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=32, help="of the batch")
    parser.add_argument("--p", type=float, default=0.3, help="the largest flip probability")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--train", type=Path, metavar="FOLDER", help="train instead, in workdirs there")
    parser.add_argument("--steps", type=int, default=200, help="of each training")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
