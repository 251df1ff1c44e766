"""A config of `infinity-jax train` as a run reads it: its sections, devices and opened data, and what must fit them."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from infinity_jax import scales
from infinity_jax.checkpoints import folder, pretrained
from infinity_jax.checkpoints.trained import TrainedTokenizer
from infinity_jax.config import SampleConfig, TransformerConfig
from infinity_jax.config_files import from_dict
from infinity_jax.data import sources
from infinity_jax.data.feeds import EncodedFeed, RecordFeed
from infinity_jax.data.prepared.config import RECORDS, DataConfig
from infinity_jax.data.prepared.record_set import MixedRecords, RecordSource
from infinity_jax.data.records import Source
from infinity_jax.errors import UserError
from infinity_jax.files import atomic
from infinity_jax.runtime import sharding
from infinity_jax.text.encoder import TextEncoder, load_text_encoder
from infinity_jax.training import config as train_config
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.optim import OptimConfig
from infinity_jax.training.sections import SECTIONS
from infinity_jax.training.transformer_step import LossConfig


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A config's sections as a run reads them, its devices and its opened data.

    Attributes:
      model, correction, loss, optim, sample, data, train: the sections of these names.
      tokenizer: path of the tokenizer, or "bundled".
      text: how captions are read: {"encoder", "max_length", "path"}.
      layout: the mesh.
      source: pictures and captions of the train split.
      records: prepared shards to train and to evaluate on, where the data is such.
    """

    model: TransformerConfig
    correction: CorrectionConfig
    loss: LossConfig
    optim: OptimConfig
    sample: SampleConfig
    data: DataConfig
    train: train_config.TrainConfig
    tokenizer: str
    text: Mapping[str, Any]
    layout: sharding.Layout
    source: Source
    records: tuple[MixedRecords, MixedRecords | None] | None


def read_config(config: Any) -> RunConfig:
    """Reads and checks a config; nothing is encoded, which may take hours, and nothing is written.

    Args:
      config: see `train_transformer.main`.
    Raises:
      UserError: a value stands in the way, or the mesh cannot share the model or the batch.
    """
    plain = {name: cls for name, cls in SECTIONS["train"].items() if name not in ("text", "train", "mesh")}
    sections = {name: from_dict(cls, config[name], name) for name, cls in plain.items()}
    layout = sharding.layout_from_config(config.mesh, sections["model"])
    source, records = _open(sections["data"])
    train = train_config.from_section(config.train, len(source))
    layout.batch(train.batch_size, train.microbatches)
    return RunConfig(
        **sections,
        train=train,
        tokenizer=config.tokenizer,
        text=config.text.to_dict(),
        layout=layout,
        source=source,
        records=records,
    )


def _open(data: DataConfig) -> tuple[Source, tuple[MixedRecords, MixedRecords | None] | None]:
    """Opens the train split's pictures and captions, and prepared records to train and evaluate on, if it is such."""
    if not data.source.startswith(RECORDS):
        if data.for_records:
            raise UserError(
                f"{', '.join(data.for_records)}: for prepared shards only, and data.source is {data.source!r}; "
                f"leave them out, or give {RECORDS}DIR with what infinity-jax prepare wrote"
            )
        return sources.open_source(data.source, "train"), None
    records = MixedRecords(data.source, data.limits)
    return RecordSource(records), (records, MixedRecords(data.validation) if data.validation else None)


def keep_tokenizer(run: RunConfig, workdir: Path) -> TrainedTokenizer:
    """Loads `fitting_tokenizer`, and copies it into a new workdir so that the run is complete in itself."""
    tokenizer, copy = fitting_tokenizer(run, workdir), workdir / "tokenizer"
    if not _has_copy(workdir):
        shutil.rmtree(copy, ignore_errors=True)
        with atomic.writing_folder(copy) as temporary:
            pretrained.save_tokenizer(temporary, tokenizer)
    return tokenizer


def _has_copy(workdir: Path) -> bool:
    """Tells whether a run has its tokenizer; one that was never whole does not count. UserError if it was lost."""
    copy, files = workdir / "tokenizer", (folder.CONFIG, folder.WEIGHTS["tokenizer"])
    missing = [name for name in files if not (copy / name).is_file()]
    if missing and any((workdir / "checkpoints").glob("[0-9]*")):
        raise UserError(f"{copy} lacks {', '.join(missing)}, which this run trains with; restore that folder")
    return not missing


def fitting_tokenizer(run: RunConfig, workdir: Path) -> TrainedTokenizer:
    """Loads the workdir's copy of the tokenizer, else the config's. UserError if it does not fit the config."""
    preset = run.data.scales
    tokenizer = pretrained.load_tokenizer(workdir / "tokenizer" if _has_copy(workdir) else run.tokenizer)
    bits = tokenizer.config.transformer_bits
    if bits != run.model.bits:
        raise UserError(
            f"the tokenizer {run.tokenizer!r} gives {bits} bits a token but config.model.bits is {run.model.bits}; "
            f"use --config.model.bits={bits} or another --config.tokenizer"
        )
    small = preset in scales.SMALL_BUDGETS  # for trying things out: any tokenizer will do
    if not small and scales.positions_preset(tokenizer.scales) != scales.positions_preset(preset):
        raise UserError(
            f"the tokenizer {run.tokenizer!r} was trained for scales {tokenizer.scales!r} but config.data.scales is "
            f"{preset!r}; use the same for both"
        )
    # A tokenizer for one pixel budget serves the others too; what is drawn is this run's.
    return dataclasses.replace(tokenizer, scales=preset)


def fitting_text_encoder(run: RunConfig) -> TextEncoder:
    """Loads the text encoder. Raises UserError if it does not fit the model."""
    encoder = load_text_encoder(run.text["encoder"], run.text["max_length"], run.text["path"])
    if encoder.channels != run.model.text_channels:
        raise UserError(
            f"text encoder {encoder.name!r} has {encoder.channels} channels but config.model.text_channels "
            f"is {run.model.text_channels}; use --config.model.text_channels={encoder.channels}"
        )
    if encoder.max_length > run.model.text_length:
        raise UserError(
            f"config.text.max_length {encoder.max_length} is longer than config.model.text_length "
            f"{run.model.text_length}, the rows of the learned empty caption; make them equal"
        )
    return encoder


def open_feed(
    run: RunConfig, tokenizer: TrainedTokenizer, text_encoder: TextEncoder, workdir: Path
) -> EncodedFeed | RecordFeed:
    """Opens what is trained on: a small set is encoded whole, of prepared shards a note goes into the workdir.

    Raises:
      UserError: the model cannot have one of the schedules, or prepared features are those of other encoders.
    """
    if run.records is None:
        feed = EncodedFeed(run.source, run.data, tokenizer, text_encoder)
    else:
        feed = RecordFeed(*run.records, run.data, tokenizer, text_encoder)
    for schedule in feed.schedules.values():
        run.model.check_schedule(schedule)
    if isinstance(feed, EncodedFeed):
        feed.encode()
    elif jax.process_index() == 0:
        feed.records.note(workdir)
    return feed
