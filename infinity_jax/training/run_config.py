"""A config of `infinity-jax train` as a run reads it: its sections, devices and opened data, and what must fit them."""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from infinity_jax import scales
from infinity_jax.checkpoints import folder, pretrained, trained
from infinity_jax.checkpoints.trained import TrainedTokenizer
from infinity_jax.config import SampleConfig, TransformerConfig
from infinity_jax.data import sources
from infinity_jax.data.feeds import EncodedFeed, RecordFeed
from infinity_jax.data.prepared.config import RECORDS, DataConfig
from infinity_jax.data.prepared.record_set import MixedRecords, RecordSource
from infinity_jax.data.records import SPLITS, Source
from infinity_jax.data.scenes.feed import SceneFeed
from infinity_jax.data.scenes.source import NAME as SCENES
from infinity_jax.errors import UserError
from infinity_jax.files import atomic
from infinity_jax.runtime import memory, sharding
from infinity_jax.sampling import guidance
from infinity_jax.sampling.config import SamplerConfig
from infinity_jax.text.encoder import TextEncoder, text_encoder_of
from infinity_jax.training import config as train_config
from infinity_jax.training import sections, start
from infinity_jax.training.correction import CorrectionConfig
from infinity_jax.training.optim import OptimConfig
from infinity_jax.training.transformer_step import LossConfig

Feed = EncodedFeed | RecordFeed | SceneFeed


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A config's sections as a run reads them, its devices and its opened data.

    Attributes:
      model, correction, loss, optim, sample, data, train: the sections of these names.
      tokenizer: path of the tokenizer, or "bundled".
      text: how captions are read, see `TextConfig`.
      layout: the mesh.
      source: pictures and captions of the train split.
      records: prepared shards to train and to evaluate on, where the data is such.
      validation: pictures to evaluate on.
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
    validation: int


def with_labels(config: Any) -> Any:
    """Fills in the classes of a model of labels from the captions of its data, where the config has none.

    Returns:
      a copy with `text.labels`, `text.classes` and `model.classes`; other configs as they are.
    """
    text = config.get("text", {})
    if text.get("encoder") != "labels" or text.get("classes", 0):
        return config
    splits = [sources.open_source(config.data.source, split) for split in SPLITS]
    names = tuple(sorted({caption for split in splits for caption in _captions(split)}))
    config = config.copy_and_resolve_references()
    config.text.update(labels=names, classes=len(names))
    config.model.classes = len(names)
    return config


def _captions(source: Any) -> Iterator[str]:
    """Yields all captions; of prepared records without their pictures, of which there may be features alone."""
    for i in range(len(source)):
        yield source.caption(i) if hasattr(source, "caption") else source[i]["caption"]


def read_config(config: Any, devices: Sequence[Any] | None = None) -> RunConfig:
    """Reads and checks a config; nothing is encoded, which may take hours, and nothing is written.

    Args:
      config: see `train_transformer.main`.
      devices: of the mesh; None is all that are here.
    Raises:
      UserError: a value stands in the way, or the mesh cannot share the model or the batch.
    """
    read = sections.read(config, "train")
    layout = sharding.layout_from_config(read.pop("mesh"), read["model"], devices)
    source, records = _open(read["data"])
    train = train_config.from_section(config.train, len(source))
    layout.batch(train.batch_size, train.microbatches)
    read["text"] = dataclasses.asdict(read["text"])
    run = RunConfig(
        **read,
        train=train,
        layout=layout,
        source=source,
        records=records,
        validation=_validation_pictures(read["data"], records),
    )
    parameters(run)
    train_config.check_best(train, run.data.source, run.validation)
    return run


def _validation_pictures(data: DataConfig, records: tuple[MixedRecords, MixedRecords | None] | None) -> int:
    if records is None:
        return len(sources.open_source(data.source, "validation"))
    return 0 if records[1] is None else len(RecordSource(records[1]))


def parameters(run: RunConfig) -> int:
    """Counts the model's parameters; UserError where they and one residual stream need more memory than there is."""
    length, train = scales.make_schedule(run.data.scales).length, run.train
    stream = train.batch_size // train.microbatches * length * run.model.width * memory.FLOAT32
    # Scanned layers have the same parameters, and are traced once.
    variables = trained.transformer_variables(dataclasses.replace(run.model, scan_layers=True))
    return memory.check_training_fits(variables, run.layout, run.optim.state_bytes, stream)


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
    """Loads `fitting_tokenizer`, and copies it into a new workdir so that the run is complete in itself.

    The copy counts from the run's first checkpoint on: until then the config may name another one.
    """
    tokenizer, copy = fitting_tokenizer(run, workdir), workdir / "tokenizer"
    if not start.newest_step(workdir) and jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(copy, ignore_errors=True)
        with atomic.writing_folder(copy) as temporary:
            pretrained.save_tokenizer(temporary, tokenizer)
    return tokenizer


def _has_begun(workdir: Path) -> bool:
    """Tells whether a run has a checkpoint, and so a tokenizer of its own. UserError if that was lost."""
    if not start.newest_step(workdir):
        return False
    copy, files = workdir / "tokenizer", (folder.CONFIG, folder.WEIGHTS["tokenizer"])
    if missing := [name for name in files if not (copy / name).is_file()]:
        raise UserError(f"{copy} lacks {', '.join(missing)}, which this run trains with; restore that folder")
    return True


def fitting_tokenizer(run: RunConfig, workdir: Path) -> TrainedTokenizer:
    """Loads the workdir's copy of the tokenizer, else the config's. UserError if it does not fit the config."""
    copy, preset = workdir / "tokenizer", run.data.scales
    begun = _has_begun(workdir)
    tokenizer = pretrained.load_tokenizer(copy if begun else run.tokenizer)
    if begun:
        _name_other_tokenizer(run.tokenizer, tokenizer, copy)
    bits = tokenizer.config.transformer_bits
    if bits != run.model.bits:
        raise UserError(
            f"the tokenizer {run.tokenizer!r} gives {bits} bits a token but config.model.bits is {run.model.bits}; "
            f"use --config.model.bits={bits} or another --config.tokenizer"
        )
    if tokenizer.config.codes != run.model.codes:
        raise UserError(
            f"the tokenizer {run.tokenizer!r} has {tokenizer.config.codes} codes (0: bits) but config.model.codes is "
            f"{run.model.codes}; use --config.model.codes={tokenizer.config.codes} or another --config.tokenizer"
        )
    if tokenizer.config.codes and run.correction.p:
        raise UserError(
            f"correction.p is {run.correction.p}; self-correction flips bits, and the tokens of {run.tokenizer!r} are "
            "codes: use --config.correction.p=0"
        )
    run.model.check_schedule(scales.make_schedule(preset))
    small = preset in scales.SMALL_BUDGETS  # for trying things out: any tokenizer will do
    if not small and scales.positions_preset(tokenizer.scales) != scales.positions_preset(preset):
        raise UserError(
            f"the tokenizer {run.tokenizer!r} was trained for scales {tokenizer.scales!r} but config.data.scales is "
            f"{preset!r}; use the same for both"
        )
    _check_drawing(run, tokenizer)
    # A tokenizer for one pixel budget serves the others too; what is drawn is this run's.
    return dataclasses.replace(tokenizer, scales=preset)


def _name_other_tokenizer(path: str, tokenizer: TrainedTokenizer, copy: Path) -> None:
    """Warns of a run that resumes with its copy of a tokenizer while the config names another one."""
    try:
        named = pretrained.load_tokenizer(path)
    except UserError:  # it need not be there any more
        return
    if named.fingerprint != tokenizer.fingerprint:
        logging.warning(
            "the run was begun with another tokenizer than %s and goes on with that, its copy in %s; to train on %s "
            "begin in another --workdir",
            *(path, copy, path),
        )


def _check_drawing(run: RunConfig, tokenizer: TrainedTokenizer) -> None:
    """Raises UserError where the section `sample` does not fit: else the first sheet would find it, hours later."""
    schedule = scales.make_schedule(run.data.scales)
    SamplerConfig.from_settings(run.model, tokenizer.config, schedule, run.sample)
    guidance.numbers([run.sample], schedule.n_scales, pictures=1)


def fitting_text_encoder(run: RunConfig) -> TextEncoder:
    """Loads the text encoder. Raises UserError if it does not fit the model."""
    encoder = text_encoder_of(run.text)
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


def feed_of(run: RunConfig, tokenizer: TrainedTokenizer, text_encoder: TextEncoder) -> Feed:
    """Makes what is trained on, of which nothing is read or encoded yet.

    Raises:
      UserError: the model cannot have one of the schedules, or prepared features are those of other encoders.
    """
    if run.data.source == SCENES:
        feed = SceneFeed(run.data, tokenizer, text_encoder)
    elif run.records is None:
        feed = EncodedFeed(run.source, run.data, tokenizer, text_encoder)
    else:
        feed = RecordFeed(*run.records, run.data, tokenizer, text_encoder)
    for schedule in feed.schedules.values():
        run.model.check_schedule(schedule)
    return feed


def open_feed(run: RunConfig, tokenizer: TrainedTokenizer, text_encoder: TextEncoder, workdir: Path) -> Feed:
    """Opens `feed_of`: a small set is encoded whole, of prepared shards a note goes into the workdir."""
    feed = feed_of(run, tokenizer, text_encoder)
    if isinstance(feed, EncodedFeed):
        feed.encode()
    elif isinstance(feed, RecordFeed) and jax.process_index() == 0:
        feed.records.note(workdir)
    return feed
