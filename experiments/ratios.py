"""Noise of training by batches of one aspect ratio each, against batches in which all ratios are mixed.

    python experiments/ratios.py --source records:shards --json ratios.json

`shards` are pictures of several aspect ratios (`infinity-jax prepare --source ... --out shards`). A small transformer
is trained on them for a while. Then, at its fixed parameters, loss and gradient are taken on batches of every ratio,
with the flips of self-correction, and their variance is split into that between the ratios' means (B) and that between
pictures of the same ratio (W). A step of N pictures has the variance B + W / N where all have one ratio, and
(B + W) / N where they are mixed.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax import config_files
from infinity_jax.checkpoints.opened import open_checkpoint
from infinity_jax.data.encoded import FeaturesOnDevice
from infinity_jax.text.on_device import TextOnDevice
from infinity_jax.training import run_config, train_transformer
from infinity_jax.training.transformer_step import corrected_inputs, draw_examples, make_loss
from infinity_jax.transformer.transformer import Transformer

BATCH = 8
PUBLISHED = (4096, 2048)  # pictures a step at 0.06M and 0.25M, and at 1M


def main() -> None:
    """Trains, measures and writes the variances."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="records:DIR")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batches", type=int, default=6, help=f"of {BATCH} pictures for each ratio")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    changes = {"data.source": arguments.source, "train.steps": arguments.steps, "train.batch_size": BATCH}
    changes |= {"train.checkpoint_every": arguments.steps, "train.log_every": 50, "optim.learning_rate": 1e-3}
    config = config_files.load("t2i:debug", [f"--config.{key}={value}" for key, value in changes.items()])
    with tempfile.TemporaryDirectory() as workdir:
        train_transformer.main(config, workdir)
        report = measure(config, Path(workdir), arguments.batches)
    arguments.json.write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


def measure(config: Any, workdir: Path, batches: int) -> dict[str, Any]:
    """Splits the variance of loss and gradient at the parameters of a finished run."""
    run = run_config.read_config(config)
    tokenizer, encoder = run_config.fitting_tokenizer(run, workdir), run_config.fitting_text_encoder(run)
    feed = run_config.open_feed(run, tokenizer, encoder, workdir)
    to_features, placed = FeaturesOnDevice(tokenizer, run.layout), TextOnDevice(encoder, run.layout)
    encoder.place(placed.layout)
    shapes = train_transformer.step_of(run, feed).state_shapes().params
    params = open_checkpoint(workdir).transformer_params(shapes)
    by_size = {
        schedule.times(tokenizer.config.patchify).last: schedule for schedule in feed.schedules.values()
    }

    @jax.jit
    def loss_and_gradient(params, batch, key, step):
        schedule = by_size[batch["features"].shape[1:3]]
        inputs, bits = corrected_inputs(
            key, step, batch["features"], schedule, run.correction, tokenizer.config
        )
        texts = {"text": batch["text"], "text_mask": batch["text_mask"]}
        draws = draw_examples(key, step, BATCH, run.model, run.loss)
        loss_fn = make_loss(Transformer(run.model), schedule, run.loss)
        loss, gradient = jax.value_and_grad(lambda p, e: loss_fn(p, e)[0])(
            params, {"inputs": inputs, "bits": bits, **texts, **draws}
        )
        return loss, jnp.concatenate([g.ravel() for g in jax.tree.leaves(gradient)])

    found: dict[Any, list[tuple[float, np.ndarray]]] = {size: [] for size in by_size}
    key = jax.random.key(1)
    rows, where = np.arange(BATCH), run.layout.batch(BATCH)
    for step, host in enumerate(feed.batches(rows, BATCH, 1, 0)):
        batch = to_features(placed(host, rows, BATCH, where))
        of_ratio = found[batch["features"].shape[1:3]]
        if len(of_ratio) < batches:
            loss, gradient = loss_and_gradient(params, batch, key, step)
            of_ratio.append((float(loss), np.asarray(gradient)))
        if all(len(measured) == batches for measured in found.values()):
            break
    ratios = list(found.values())
    report: dict[str, Any] = {
        "loss_of_ratio": {f"{h}x{w}": float(np.mean([m[0] for m in of])) for (h, w), of in found.items()},
        "loss": split([np.array([[m[0]] for m in of]) for of in ratios]),
        "gradient": split([np.stack([m[1] for m in of]) for of in ratios]),
    }
    return report


def split(batches_of_ratio: list[np.ndarray]) -> dict[str, Any]:
    """Estimates B and W, summed over components, from means over batches: [batches, components] of each ratio."""
    count = len(batches_of_ratio[0])
    within_means = float(np.mean([x.var(0, ddof=1).sum() for x in batches_of_ratio]))
    means = np.stack([x.mean(0) for x in batches_of_ratio])
    between = max(0.0, float(means.var(0, ddof=1).sum()) - within_means / count)
    within = within_means * BATCH
    report: dict[str, Any] = {
        "square_of_the_mean": float(np.square(means.mean(0)).sum()),
        "between": between,
        "within": within,
    }
    for size in (BATCH, *PUBLISHED):
        one, mixed = between + within / size, (between + within) / size
        report[f"step_of_{size}"] = {"one_ratio": one, "mixed": mixed, "deviations": (one / mixed) ** 0.5}
    return report


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main()
