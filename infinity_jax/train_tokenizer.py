"""`infinity-jax train-tokenizer`: picture -> features -> multi-scale bits -> picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax import optim, origin, scales, train_state, training_loop
from infinity_jax.config import TokenizerConfig, from_dict
from infinity_jax.data import pictures, pipeline, sources
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
      config: a ConfigDict as configs/emoji_tokenizer.py makes it: model, loss, optim, data, train.
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
    train = training_loop.train_config(config.train, len(source))
    tokenizer = Tokenizer(model)
    optimiser = optim.make_optimiser(optim_config, train.steps)
    state = train_state.create(
        initial_params(tokenizer, side, train.seed), optimiser, optim_config.ema_decay > 0
    )

    def decode(record):
        return {"image": pictures.decode(record["image"], side, side)}

    return training_loop.run(
        workdir,
        train,
        state,
        make_train_step(tokenizer, loss, optim_config, optimiser, train_schedule, load_efficientnet()),
        lambda first_step: pipeline.batches(
            source, batch_size=train.batch_size, seed=train.seed, first_step=first_step, transform=decode
        ),
        config=config.to_dict() | {"origin": origin.describe()},
        hooks=_hooks(tokenizer, test_schedule, config, train, decode, Path(workdir)),
    )


def initial_params(tokenizer: Tokenizer, side: int, seed: int):
    """Fresh float32 parameters of a tokenizer for pictures of `side` x `side` pixels."""
    last = side // tokenizer.config.stride
    init = jax.jit(tokenizer.init, static_argnums=2)
    image = jnp.zeros((1, side, side, 3), jnp.float32)
    return nn.unbox(init(jax.random.key(seed), image, scales.ScaleSchedule(((last, last),), (last, last))))[
        "params"
    ]


def _hooks(
    tokenizer: Tokenizer,
    schedule: scales.ScaleSchedule,
    config: Any,
    train: training_loop.TrainConfig,
    decode: Callable,
    workdir: Path,
) -> list[training_loop.Hook]:
    """Validation PSNR and a sheet of originals above reconstructions, from the averaged parameters."""
    validation = sources.open_source(config.data.source, "validation")
    if len(validation) == 0:
        return []
    jitted = jax.jit(lambda params, image: reconstruct(tokenizer, params, image, schedule))

    def reconstruct_batch(state: TrainState, image: np.ndarray) -> np.ndarray:
        return pictures.to_uint8(np.asarray(jitted(averaged(state), pictures.to_float(image))))

    def evaluate(step: int, state: TrainState) -> dict[str, float]:
        pairs = []
        for batch in pipeline.eval_batches(validation, train.batch_size, decode):
            image, valid = batch["image"], batch["valid"]
            pairs.append((image[valid], reconstruct_batch(state, image)[valid]))
        original, reconstruction = (np.concatenate(part) for part in zip(*pairs, strict=True))
        return {"validation_psnr": mean_psnr(original, reconstruction)}

    def draw(step: int, state: TrainState) -> None:
        image = np.stack(
            [decode(validation[i])["image"] for i in range(min(SHEET_PICTURES, len(validation)))]
        )
        sheets.comparison_sheet(
            [image, reconstruct_batch(state, image)],
            ["original", "reconstruction"],
            workdir / "samples" / f"reconstruction-{step:07d}.png",
            title=f"step {step}",
        )

    return [training_loop.Hook(train.evaluate_every, evaluate), training_loop.Hook(train.sample_every, draw)]
