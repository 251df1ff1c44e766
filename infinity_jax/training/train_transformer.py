"""`infinity-jax train`: picture -> tokenizer features -> bits -> self-correction -> transformer -> loss."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from infinity_jax import scales
from infinity_jax.checkpoints import origin, pretrained
from infinity_jax.config import SampleConfig, TransformerConfig, from_dict
from infinity_jax.data import sources
from infinity_jax.data.encoded import features_on_device
from infinity_jax.data.feeds import EncodedFeed, RecordFeed
from infinity_jax.data.prepared.config import RECORDS, DataConfig
from infinity_jax.data.prepared.record_set import MixedRecords, RecordSource
from infinity_jax.data.records import Source
from infinity_jax.errors import UserError
from infinity_jax.runtime import distributed, sharding
from infinity_jax.sampling.pipeline import InfinityPipeline
from infinity_jax.text.encoder import TextEncoder, load_text_encoder
from infinity_jax.training import config as train_config
from infinity_jax.training import loop, optim
from infinity_jax.training import state as train_state
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.hooks import sheet_hook, validation_hook
from infinity_jax.training.state import TrainState, averaged
from infinity_jax.training.transformer_step import LossConfig, make_train_step, not_a_kernel, of_ratio
from infinity_jax.transformer.transformer import Transformer, init_variables


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A config's sections as a run reads them, its devices and its opened data.

    Attributes:
      source: pictures and captions of the train split.
      records: prepared shards to train and to evaluate on, where the data is such.
    """

    model: TransformerConfig
    correction: CorrectionConfig
    loss: LossConfig
    optim: optim.OptimConfig
    sample: SampleConfig
    data: DataConfig
    layout: sharding.Layout
    source: Source
    records: tuple[MixedRecords, MixedRecords | None] | None
    train: train_config.TrainConfig


def read_config(config: Any) -> RunConfig:
    """What a config says, checked; nothing is encoded, which may take hours, and nothing is written.

    Raises:
      UserError: a value stands in the way, or the mesh cannot share the model or the batch.
    """
    model, data = (
        from_dict(TransformerConfig, config.model, "model"),
        from_dict(DataConfig, config.data, "data"),
    )
    parts = (
        model,
        from_dict(CorrectionConfig, config.correction, "correction"),
        from_dict(LossConfig, config.loss, "loss"),
        from_dict(optim.OptimConfig, config.optim, "optim"),
        from_dict(SampleConfig, config.sample, "sample"),
        data,
        layout := sharding.layout_from_config(config.mesh, model),
    )
    source, records = _open(data)
    train = train_config.from_section(config.train, len(source))
    layout.batch(train.batch_size, train.microbatches)
    return RunConfig(*parts, source, records, train)


def main(config: Any, workdir: str | Path) -> TrainState:
    """Trains a transformer into `workdir`, or goes on with the run that is there.

    Args:
      config: a ConfigDict as configs/emoji.py makes it, with the sections model, text, data, correction, loss,
        optim, train, mesh, sample and the key tokenizer. Prepared shards (data.source "records:DIR") are read as the
        run goes on, in batches of one aspect ratio; other data sets are encoded whole at the start.
      workdir: gets checkpoints, metrics, sample sheets and a copy of the tokenizer.
    Returns:
      the last state.
    Raises:
      UserError: a value of the config, the data, a checkpoint or the disk stands in the way; the message says which.
    """
    workdir, run = Path(workdir), read_config(config)
    model_config, optim_config, data, train, layout = run.model, run.optim, run.data, run.train, run.layout
    source, records = run.source, run.records
    tokenizer = distributed.lead_first(
        lambda: keep_tokenizer(config.tokenizer, workdir, model_config, data.scales)
    )
    text_encoder = load_text_encoder(config.text.encoder, config.text.max_length, config.text.path)
    _check_text(text_encoder, model_config)
    common = (data, tokenizer, text_encoder)
    feed = EncodedFeed(source, *common) if records is None else RecordFeed(*records, *common)
    for schedule in feed.schedules.values():
        model_config.check_schedule(schedule)
    if isinstance(feed, EncodedFeed):
        feed.encode()
    elif jax.process_index() == 0:
        feed.records.note(workdir)

    model = Transformer(model_config)
    optimiser = optim.make_optimiser(optim_config, train.steps, no_decay=not_a_kernel)
    new_state, placed = train_state.new_state(
        lambda: init_variables(model_config, jax.random.key(train.seed), feed.schedules["1:1"])["params"],
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
            data.source,
            dataclasses.asdict(run.sample),
            {},
        )
        return InfinityPipeline(trained, text_encoder, layout)

    # One microbatch at a time: more may not fit.
    part = train.batch_size // train.microbatches
    on_device = features_on_device(tokenizer.config, tokenizer.params, layout)
    validation = validation_hook(feed, model, part, layout, on_device)
    hooks = [
        loop.Hook(train.evaluate_every, validation),
        loop.Hook(
            train.sample_every,
            sheet_hook(pipeline_of, len(source), feed.caption, train.seed, workdir / "samples"),
        ),
    ]
    if not feed.encodes_text:
        # All captions are encoded by now; from here on the encoder takes its share of every device, not all of one.
        text_encoder.place(layout)
    return loop.run(
        workdir,
        train,
        new_state,
        placed,
        layout,
        of_ratio(
            feed.schedules.values(),
            tokenizer,
            lambda schedule: make_train_step(
                model,
                schedule,
                tokenizer.config,
                run.correction,
                run.loss,
                optim_config,
                optimiser,
                train.microbatches,
            ),
        ),
        lambda first_step, rows_of: feed.batches(
            rows_of(train.batch_size), train.batch_size, train.seed, first_step
        ),
        config=config.to_dict() | {"origin": origin.describe()},
        hooks=hooks,
        load_params=pretrained.load_transformer_params,
        on_device=on_device,
    )


def _open(data: DataConfig) -> tuple[Source, tuple[MixedRecords, MixedRecords | None] | None]:
    """The pictures and captions of the train split; prepared records to train and to evaluate on, if it is such."""
    if not data.source.startswith(RECORDS):
        if data.for_records:
            raise UserError(
                f"{', '.join(data.for_records)}: for prepared shards only, and data.source is {data.source!r}; "
                f"leave them out, or give {RECORDS}DIR with what infinity-jax prepare wrote"
            )
        return sources.open_source(data.source, "train"), None
    records = MixedRecords(data.source, data.limits)
    return RecordSource(records), (records, MixedRecords(data.validation) if data.validation else None)


def keep_tokenizer(
    path: str, workdir: Path, model: TransformerConfig, preset: str
) -> pretrained.TrainedTokenizer:
    """`fitting_tokenizer`, copied into the workdir at the first start so that the run is complete in itself."""
    tokenizer, copy = fitting_tokenizer(path, workdir, model, preset), workdir / "tokenizer"
    if not copy.is_dir():
        pretrained.save_tokenizer(copy, tokenizer)
    return tokenizer


def fitting_tokenizer(
    path: str, workdir: Path, model: TransformerConfig, preset: str
) -> pretrained.TrainedTokenizer:
    """The tokenizer to train with: the workdir's copy, or that of `path` if there is none yet.

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
    small = preset in scales.SMALL_BUDGETS  # for trying things out: any tokenizer will do
    if not small and scales.positions_preset(tokenizer.scales) != scales.positions_preset(preset):
        raise UserError(
            f"the tokenizer {path!r} was trained for scales {tokenizer.scales!r} but config.data.scales is {preset!r}; "
            "use the same for both"
        )
    # A tokenizer for one pixel budget serves the others too; what is drawn is this run's.
    return dataclasses.replace(tokenizer, scales=preset)


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
