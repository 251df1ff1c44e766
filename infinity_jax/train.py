"""`infinity-jax train`: picture -> tokenizer features -> bits -> self-correction -> transformer -> loss."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from infinity_jax import (
    distributed,
    optim,
    origin,
    pretrained,
    scales,
    sharding,
    train_config,
    train_state,
    training_loop,
)
from infinity_jax.config import TransformerConfig, from_dict
from infinity_jax.correction import CorrectionConfig
from infinity_jax.data import global_batch, pipeline, sources
from infinity_jax.data.encoded import EncodedSource, encode_source
from infinity_jax.errors import UserError
from infinity_jax.model.transformer import Transformer, init_variables
from infinity_jax.pipeline import InfinityPipeline, SampleConfig
from infinity_jax.sample import sheet_hook
from infinity_jax.text.encoder import TextEncoder, load_text_encoder
from infinity_jax.tokenizer.model import Tokenizer
from infinity_jax.train_state import TrainState, averaged
from infinity_jax.train_step import LossConfig, make_eval_step, make_train_step


def main(config: Any, workdir: str | Path) -> TrainState:
    """Trains a transformer into `workdir`, or goes on with the run that is there.

    Args:
      config: a ConfigDict as configs/emoji.py makes it, with the sections model, text, data, correction, loss,
        optim, train, mesh, sample and the key tokenizer.
      workdir: gets checkpoints, metrics, sample sheets and a copy of the tokenizer.
    Returns:
      the last state.
    Raises:
      UserError: a value of the config, the data, a checkpoint or the disk stands in the way; the message says which.
    """
    model_config = from_dict(TransformerConfig, config.model, "model")
    correction_config = from_dict(CorrectionConfig, config.correction, "correction")
    loss_config = from_dict(LossConfig, config.loss, "loss")
    optim_config = from_dict(optim.OptimConfig, config.optim, "optim")
    sample_config = from_dict(SampleConfig, config.sample, "sample")
    schedule = scales.make_schedule(config.data.scales)
    workdir = Path(workdir)
    # What the mesh cannot share is told before anything is encoded, which may take hours.
    layout = sharding.layout_from_config(config.mesh, model_config)
    source = sources.open_source(config.data.source, "train")
    train = train_config.from_section(config.train, len(source))
    layout.batch(train.batch_size, train.microbatches)

    tokenizer = distributed.lead_first(
        lambda: keep_tokenizer(config.tokenizer, workdir, model_config, config.data.scales)
    )
    text_encoder = load_text_encoder(config.text.encoder, config.text.max_length, config.text.path)
    _check_text(text_encoder, model_config)
    encoded = encode_split(source, tokenizer, text_encoder)

    model = Transformer(model_config)
    optimiser = optim.make_optimiser(optim_config, train.steps, no_decay=not_a_kernel)
    new_state, placed = train_state.new_state(
        lambda: init_variables(model_config, jax.random.key(train.seed), schedule)["params"],
        optimiser,
        optim_config.ema_decay > 0,
        layout,
    )

    def pipeline_of(state: TrainState) -> InfinityPipeline:
        trained = pretrained.TrainedModel(
            tokenizer,
            model_config,
            averaged(state),
            config.text.to_dict(),
            config.data.source,
            dataclasses.asdict(sample_config),
            {},
        )
        return InfinityPipeline(trained, text_encoder, layout)

    # One microbatch at a time: more may not fit.
    part = train.batch_size // train.microbatches
    validation = _validation(config.data.source, tokenizer, text_encoder, model, schedule, part, layout)
    hooks = [
        training_loop.Hook(train.evaluate_every, validation),
        training_loop.Hook(
            train.sample_every, sheet_hook(pipeline_of, source, train.seed, workdir / "samples")
        ),
    ]
    # All captions are encoded by now; from here on the encoder takes its share of every device instead of one's all.
    text_encoder.place(layout)
    return training_loop.run(
        workdir,
        train,
        new_state,
        placed,
        layout,
        make_train_step(
            model,
            schedule,
            tokenizer.config,
            correction_config,
            loss_config,
            optim_config,
            optimiser,
            train.microbatches,
        ),
        lambda first_step, rows_of: pipeline.batches(
            encoded,
            batch_size=train.batch_size,
            seed=train.seed,
            first_step=first_step,
            rows=rows_of(train.batch_size),
        ),
        config=config.to_dict() | {"origin": origin.describe()},
        hooks=hooks,
        load_params=pretrained.load_transformer_params,
    )


def not_a_kernel(name: str) -> bool:
    """Whether a parameter is exempt from weight decay: all but the linear maps are (spec section 6)."""
    return name.split("/")[-1] != "kernel"


def keep_tokenizer(
    path: str, workdir: Path, model: TransformerConfig, preset: str
) -> pretrained.TrainedTokenizer:
    """The tokenizer to train with, copied into the workdir at the first start so that the run is complete in itself.

    Raises:
      UserError: it does not fit the model or the scale preset.
    """
    copy = workdir / "tokenizer"
    tokenizer = pretrained.load_tokenizer(copy if copy.is_dir() else path)
    bits = tokenizer.config.transformer_bits
    if bits != model.bits:
        raise UserError(
            f"the tokenizer {path!r} gives {bits} bits a token but config.model.bits is {model.bits}; "
            f"use --config.model.bits={bits} or another --config.tokenizer"
        )
    if tokenizer.scales != preset and not {tokenizer.scales, preset} <= scales.BUDGETS.keys():
        raise UserError(
            f"the tokenizer {path!r} was trained for scales {tokenizer.scales!r} but config.data.scales is {preset!r}; "
            "use the same for both"
        )
    if not copy.is_dir():
        pretrained.save_tokenizer(copy, tokenizer)
    # A tokenizer for one pixel budget serves the others too.
    return dataclasses.replace(tokenizer, scales=preset)


def encode_split(
    source: sources.Source, tokenizer: pretrained.TrainedTokenizer, text_encoder: TextEncoder
) -> EncodedSource:
    """A split as the transformer reads it, from the cache where possible."""
    model = Tokenizer(tokenizer.config)
    return distributed.lead_first(
        lambda: encode_source(source, model, tokenizer.params, text_encoder, tokenizer.side)
    )


def _check_text(text_encoder: TextEncoder, model: TransformerConfig) -> None:
    if text_encoder.channels != model.text_channels:
        raise UserError(
            f"text encoder {text_encoder.name!r} has {text_encoder.channels} channels but config.model.text_channels "
            f"is {model.text_channels}; use --config.model.text_channels={text_encoder.channels}"
        )
    if text_encoder.max_length > model.text_length:
        raise UserError(
            f"config.text.max_length {text_encoder.max_length} is longer than config.model.text_length "
            f"{model.text_length}, the rows of the learned empty caption; make them equal"
        )


def _validation(
    source_name: str,
    tokenizer: pretrained.TrainedTokenizer,
    text_encoder: TextEncoder,
    model: Transformer,
    schedule: scales.ScaleSchedule,
    batch_size: int,
    layout: sharding.Layout,
):
    """Hook: loss and accuracies on the validation split, with the averaged parameters."""
    source = sources.open_source(source_name, "validation")
    eval_step = layout.traced(make_eval_step(model, schedule, tokenizer.config))
    eval_step = jax.jit(eval_step, out_shardings=layout.whole)
    encoded = encode_split(source, tokenizer, text_encoder) if len(source) else None

    def evaluate(step: int, state: TrainState) -> dict[str, Any]:
        if encoded is None:
            return {}
        metrics = evaluate_loss(eval_step, averaged(state), encoded, batch_size, layout.batch(batch_size))
        return {f"validation_{name}": value for name, value in metrics.items()}

    return evaluate


def evaluate_loss(
    eval_step, params, encoded: EncodedSource, batch_size: int, placed: jax.sharding.Sharding | None = None
) -> dict[str, Any]:
    """Mean over a split of what `make_eval_step` reports: floats and lists of floats.

    Every process reads all of it; `placed` says how a batch then lies over the devices, None is the default device.
    """
    totals, count = None, 0
    for batch in pipeline.eval_batches(encoded, batch_size):
        valid = int(batch["valid"].sum())
        if placed is not None:
            batch = global_batch.place(batch, np.arange(batch_size), batch_size, placed)
        metrics = jax.tree.map(lambda x, n=valid: np.asarray(x, np.float64) * n, eval_step(params, batch))
        totals = metrics if totals is None else jax.tree.map(np.add, totals, metrics)
        count += valid
    return jax.tree.map(lambda x: (x / count).tolist(), totals)
