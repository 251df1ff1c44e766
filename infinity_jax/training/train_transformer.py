"""`infinity-jax train`: picture -> tokenizer features -> bits -> self-correction -> transformer -> loss."""

from pathlib import Path
from typing import Any

from infinity_jax.checkpoints import origin
from infinity_jax.checkpoints.opened import open_checkpoint
from infinity_jax.data.encoded import FeaturesOnDevice
from infinity_jax.runtime import distributed, global_batch, kept_programs
from infinity_jax.runtime.compiled_step import BatchShapes
from infinity_jax.text.on_device import TextOnDevice
from infinity_jax.training import loop, run_config, start, summary
from infinity_jax.training.batch_cost import batch_cost
from infinity_jax.training.hooks import sample_sheet, validation
from infinity_jax.training.state import TrainState, TrainStep
from infinity_jax.training.tokenizer_check import check_tokenizer
from infinity_jax.training.transformer_step import StepConfig, build_step


def main(config: Any, workdir: str | Path) -> TrainState:
    """Trains a transformer into `workdir`, or resumes the run that is there.

    Args:
      config: a ConfigDict as configs/emoji.py makes it, with the sections model, text, data, correction, loss,
        optim, train, mesh, sample and the key tokenizer. Prepared shards (data.source "records:DIR") are read during
        the run, in batches of one aspect ratio; other data sets are encoded whole at the start.
      workdir: gets checkpoints, metrics, sample sheets and a copy of the tokenizer.
    Raises:
      UserError: a value of the config, the data, a checkpoint or the disk stands in the way; the message says which.
    """
    config = run_config.with_labels(config)
    run = run_config.read_config(config)
    with start.alone_in(Path(workdir)):
        return _train(config, run, Path(workdir))


def _train(config: Any, run: run_config.RunConfig, workdir: Path) -> TrainState:
    train, layout = run.train, run.layout
    pictures = (len(run.source), run.validation)
    summary.say("a transformer", run_config.parameters(run), pictures, train, workdir)
    tokenizer = distributed.lead_first(lambda: run_config.keep_tokenizer(run, workdir))
    if not start.newest_step(workdir):
        check_tokenizer(run, tokenizer, workdir)
    text_encoder = run_config.fitting_text_encoder(run)
    feed = run_config.open_feed(run, tokenizer, text_encoder, workdir)
    step = step_of(run, feed)
    to_features = FeaturesOnDevice(tokenizer, layout, kept_programs.of_run(workdir, layout).compiler())
    placed = TextOnDevice(text_encoder, layout)
    hooks = [
        loop.Hook(train.evaluate_every, validation(run, feed, placed, to_features)),
        loop.Hook(train.sample_every, sample_sheet(run, feed, workdir / "samples")),
    ]
    # A small set's captions are encoded by now; from here on the encoder takes its share of every device, not all of
    # one. Where the run goes on encoding, each process does so for its own rows.
    text_encoder.place(placed.layout if feed.encodes_text else layout)

    earlier_data = start.data_before(train, workdir, "transformer")

    def batches(first_step: int, rows_of: loop.RowsOf):
        return feed.batches(rows_of(train.batch_size), train.batch_size, train.seed, first_step)

    return loop.run(
        workdir,
        train,
        step,
        loop.Data(
            batches,
            lambda step: step * train.batch_size,
            placed,
            to_features,
            batch_cost(run.model, feed, placed),
            lambda: to_features.prepare(batch_shapes(run, feed)),
        ),
        config=config.to_dict() | {"origin": origin.describe(earlier_data)},
        hooks=hooks,
        load_params=lambda path, wanted: open_checkpoint(path).transformer_params(wanted),
    )


def step_of(run: run_config.RunConfig, feed: run_config.Feed) -> TrainStep:
    """Builds the step of a run on what it reads."""
    parts = StepConfig(
        run.model,
        feed.tokenizer.config,
        run.correction,
        run.loss,
        run.optim,
        run.train.steps,
        run.train.microbatches,
        # Of codes there is one ratio and one number of scales.
        feed.tokenizer.quantizer(max(schedule.n_scales for schedule in feed.schedules.values())),
    )
    return build_step(parts, feed.schedules.values(), run.layout, run.train.seed)


def batch_shapes(run: run_config.RunConfig, feed: run_config.Feed) -> list[BatchShapes]:
    """Describes each kind of batch of a run as it comes onto the devices."""
    size = run.train.batch_size
    return [global_batch.described(arrays, size, run.layout.batch(size)) for arrays in feed.shapes()]
