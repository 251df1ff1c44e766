"""`infinity-jax train-tokenizer`: picture -> features -> multi-scale bits -> picture."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax import optim, origin, scales, sharding, train_config, train_state, training_loop
from infinity_jax.config import TokenizerConfig, from_dict
from infinity_jax.data import global_batch, pictures, pipeline, sources
from infinity_jax.errors import UserError
from infinity_jax.evaluation import sheets
from infinity_jax.evaluation.efficientnet import load_efficientnet
from infinity_jax.evaluation.reconstruction import mean_psnr
from infinity_jax.tokenizer.model import Tokenizer, reconstruct
from infinity_jax.tokenizer.train_step import TokenizerLossConfig, make_train_step
from infinity_jax.train_state import TrainState, averaged

SHEET_PICTURES = 12


def main(config: Any, workdir: str | Path) -> TrainState:
    """Trains a tokenizer into `workdir`, or goes on with the run that is there.

    Args:
      config: a ConfigDict as configs/emoji_tokenizer.py makes it: model, loss, optim, data, train, mesh.
      workdir: gets checkpoints, metrics and picture sheets.
    Returns:
      the last state.
    Raises:
      UserError: a value of the config, the data or the disk stands in the way; the message says which.
    """
    model = from_dict(TokenizerConfig, config.model, "model")
    loss = from_dict(TokenizerLossConfig, config.loss, "loss")
    optim_config = from_dict(optim.OptimConfig, config.optim, "optim")
    test_schedule = scales.make_schedule(config.data.scales).times(model.patchify)
    train_schedule = scales.dense_schedule(test_schedule.last[0])
    side = test_schedule.last[0] * model.stride

    source = sources.open_source(config.data.source, "train")
    train = train_config.from_section(config.train, len(source))
    if train.microbatches != 1:
        raise UserError(
            f"train.microbatches is {train.microbatches}; a tokenizer is trained on whole batches, with 1"
        )
    tokenizer = Tokenizer(model)
    optimiser = optim.make_optimiser(optim_config, train.steps)
    layout = sharding.layout_from_config(config.mesh)
    new_state, placed = train_state.new_state(
        lambda: initial_variables(tokenizer, side, train.seed), optimiser, optim_config.ema_decay > 0, layout
    )

    def decode(record):
        return {"image": pictures.decode(record["image"], side, side)}

    return training_loop.run(
        workdir,
        train,
        new_state,
        placed,
        layout,
        make_train_step(tokenizer, loss, optim_config, optimiser, train_schedule, load_efficientnet()),
        lambda first_step, rows: pipeline.batches(
            source,
            batch_size=train.batch_size,
            seed=train.seed,
            first_step=first_step,
            transform=decode,
            rows=rows,
        ),
        config=config.to_dict() | {"origin": origin.describe()},
        hooks=_hooks(tokenizer, test_schedule, config, train, layout, decode, Path(workdir)),
    )


def initial_params(tokenizer: Tokenizer, side: int, seed: int):
    """Fresh float32 parameters of a tokenizer for pictures of `side` x `side` pixels."""
    return nn.meta.unbox(jax.jit(lambda: initial_variables(tokenizer, side, seed))())


def initial_variables(tokenizer: Tokenizer, side: int, seed: int):
    """The same, boxed with their logical axis names."""
    last = side // tokenizer.config.stride
    schedule = scales.ScaleSchedule(((last, last),), (last, last))
    return tokenizer.init(jax.random.key(seed), jnp.zeros((1, side, side, 3), jnp.float32), schedule)[
        "params"
    ]


def _hooks(
    tokenizer: Tokenizer,
    schedule: scales.ScaleSchedule,
    config: Any,
    train: train_config.TrainConfig,
    layout: sharding.Layout,
    decode: Callable,
    workdir: Path,
) -> list[training_loop.Hook]:
    """Validation PSNR and a sheet of originals above reconstructions, from the averaged parameters."""
    validation = sources.open_source(config.data.source, "validation")
    if len(validation) == 0:
        return []
    size, share = train.batch_size, layout.batch(train.batch_size)
    jitted = jax.jit(
        layout.traced(lambda params, image: reconstruct(tokenizer, params, image, schedule)),
        out_shardings=layout.whole,
    )

    def reconstruct_batch(state: TrainState, image: np.ndarray) -> np.ndarray:
        batch = {"image": pictures.to_float(image)}
        placed = global_batch.place(batch, np.arange(size), size, share)["image"]
        return pictures.to_uint8(np.asarray(jitted(averaged(state), placed)))

    def evaluate(step: int, state: TrainState) -> dict[str, float]:
        pairs = []
        for batch in pipeline.eval_batches(validation, size, decode):
            image, valid = batch["image"], batch["valid"]
            pairs.append((image[valid], reconstruct_batch(state, image)[valid]))
        original, reconstruction = (np.concatenate(part) for part in zip(*pairs, strict=True))
        return {"validation_psnr": mean_psnr(original, reconstruction)}

    def draw(step: int, state: TrainState) -> None:
        images, reconstructions = [], []
        for batch in itertools.islice(
            pipeline.eval_batches(validation, size, decode), -(-SHEET_PICTURES // size)
        ):
            images.append(batch["image"][batch["valid"]])
            reconstructions.append(reconstruct_batch(state, batch["image"])[batch["valid"]])
        if jax.process_index() == 0:
            sheets.comparison_sheet(
                [np.concatenate(images)[:SHEET_PICTURES], np.concatenate(reconstructions)[:SHEET_PICTURES]],
                ["original", "reconstruction"],
                workdir / "samples" / f"reconstruction-{step:07d}.png",
                title=f"step {step}",
            )

    return [training_loop.Hook(train.evaluate_every, evaluate), training_loop.Hook(train.sample_every, draw)]
