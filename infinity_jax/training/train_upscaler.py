"""`infinity-jax train-upscaler`: true and spoiled pictures -> features -> the first scales -> loss (NSARM)."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from infinity_jax.checkpoints import origin, trained
from infinity_jax.checkpoints.opened import on_host, open_checkpoint
from infinity_jax.checkpoints.trained import TrainedModel
from infinity_jax.checkpoints.upscaler_run import NETWORK, TRANSFORMER, check_system, note_system
from infinity_jax.data import batches, pictures, resolutions, sources
from infinity_jax.data.degradation.process import DegradationConfig, brought_to, degrade
from infinity_jax.data.encoded import FeaturesOnDevice
from infinity_jax.data.feeds import with_text_ids
from infinity_jax.data.records import Source
from infinity_jax.errors import UserError
from infinity_jax.runtime import kept_programs, memory, sharding
from infinity_jax.text.encoder import TextEncoder, text_encoder_of
from infinity_jax.text.on_device import TextOnDevice
from infinity_jax.training import config as train_config
from infinity_jax.training import loop, sections, start, summary
from infinity_jax.training.state import TrainState, averaged
from infinity_jax.training.upscaler_step import UpscalerStepConfig, build_step, make_loss, step_config

# Places of pictures that are evaluated on: never those of one that is trained on.
_EVALUATED = 2**40


@dataclasses.dataclass(frozen=True)
class Pairs:
    """True pictures beside spoiled ones, as arrays of the host.

    Attributes:
      side: pixels of a side of the true pictures.
      encode_side: to how many pixels the spoiled ones are brought for the tokenizer.
      factor, degradation, fit, seed: how they are made.
      prompt: of all pictures; "" is each one's caption.
      text_encoder: of captions; None leaves texts out.
    """

    side: int
    encode_side: int
    factor: int
    degradation: DegradationConfig
    fit: str
    seed: int
    prompt: str
    text_encoder: TextEncoder | None

    def decode(self, record: Any, place: int) -> dict[str, Any]:
        """Makes `image` uint8 [H,W,3] and `low` uint8 [S,S,3], and the `caption` where texts are read."""
        image = pictures.decode(record["image"], self.side, self.side, self.fit)
        true, low = degrade(image, self.factor, self.degradation, self.seed, place)
        made = {"image": true, "low": brought_to(low, self.encode_side)}
        return made if self.text_encoder is None else {**made, "caption": self.prompt or record["caption"]}

    def finished(self, batch: batches.Batch) -> batches.Batch:
        """Turns captions into the token ids of a batch."""
        return batch if self.text_encoder is None else with_text_ids(batch, self.text_encoder)


def main(config: Any, workdir: str | Path) -> TrainState:
    """Trains an upscaler of a system into `workdir`, or resumes the run that is there.

    Args:
      config: a ConfigDict as configs/upscaler.py makes it, with the sections upscaler, degradation, data, correction,
        loss, optim, train, mesh, sample and the keys system and stage.
      workdir: gets checkpoints, metrics, and a note of the system, whose weights are not copied.
    Raises:
      UserError: a value of the config, the data, the system or the disk stands in the way; the message says which.
    """
    read = sections.read(config, "train-upscaler")
    source = sources.open_source(read["data"].source, "train")
    validation = sources.open_source(read["data"].source, "validation")
    train = train_config.from_section(config.train, len(source))
    workdir = Path(workdir)
    _refuse_others(read, train)
    if config.stage == 2 and not (train.init_from or train.restore_from or start.newest_step(workdir)):
        raise UserError(
            "stage 2 begins with a network that stage 1 has trained; give --config.train.init_from=DIR"
        )
    train_config.check_best(train, read["data"].source, len(validation))
    layout = sharding.layout_from_config(read["mesh"])
    layout.batch(train.batch_size, train.microbatches)
    path = config.system
    with on_host():
        # Of the transformer only what it is; its weights come when a run begins, laid out as they shall lie.
        system = dataclasses.replace(open_checkpoint(path).model(), params=None)
    configs = system.config, system.tokenizer.config
    parts = step_config(read, config.stage, configs, train.steps, train.microbatches)
    with start.alone_in(workdir):
        if start.newest_step(workdir):
            check_system(workdir, path, system.tokenizer.fingerprint)
        elif jax.process_index() == 0:
            note_system(workdir, path, system.tokenizer.fingerprint)
        return _train(config, _Run(read, parts, train, layout, source, validation, system, workdir))


def _refuse_others(read: dict[str, Any], train: train_config.TrainConfig) -> None:
    """Raises UserError for keys of sections that other trainings read too, and this one does not."""
    data, loss = read["data"], read["loss"]
    wrong = {
        "data.mix": data.mix,
        "data.enlarge": data.enlarge != 1,
        "data.flip": data.flip,
        "loss.progressive": loss.progressive,
        "correction.requantise=false": not read["correction"].requantise,
        "train.sample_every": train.sample_every,
        "train.sample_prompts": train.sample_prompts,
    }
    if given := [name for name, is_given in wrong.items() if is_given]:
        raise UserError(f"{', '.join(given)}: an upscaler's training does not have it; leave it out")
    if data.source == "scenes":
        raise UserError(
            "data.source is 'scenes'; an upscaler is trained on pictures that lie somewhere: name another"
        )


@dataclasses.dataclass(frozen=True)
class _Run:
    read: dict[str, Any]
    parts: UpscalerStepConfig
    train: train_config.TrainConfig
    layout: sharding.Layout
    source: Source
    validation: Source
    system: TrainedModel
    workdir: Path

    @functools.cached_property
    def pairs(self) -> Pairs:
        tokenizer, upscaler, data = self.parts.tokenizer, self.parts.upscaler, self.read["data"]
        return Pairs(
            self.parts.schedule.last[0] * tokenizer.transformer_stride,
            upscaler.side * tokenizer.stride,
            upscaler.factor,
            self.read["degradation"],
            data.fit,
            self.train.seed,
            upscaler.prompt,
            text_encoder_of(self.system.text) if self.parts.stage == 2 else None,
        )


def _train(config: Any, run: _Run) -> TrainState:
    train, layout, parts, pairs = run.train, run.layout, run.parts, run.pairs
    variables: dict[str, Any] = {NETWORK: trained.upscaler_variables(parts.upscaler)}
    if parts.stage == 2:
        variables[TRANSFORMER] = trained.transformer_variables(
            dataclasses.replace(parts.model, scan_layers=True)
        )
    stream = train.batch_size // train.microbatches * parts.schedule.length * parts.model.width
    parameters = memory.check_training_fits(
        variables, layout, parts.optim.state_bytes, stream * memory.FLOAT32 if parts.stage == 2 else 0
    )
    summary.say("an upscaler", parameters, (len(run.source), len(run.validation)), train, run.workdir)
    compiler = kept_programs.of_run(run.workdir, layout).compiler()
    to_features = _to_features(FeaturesOnDevice(run.system.tokenizer, layout, compiler))
    mix = resolutions.ResolutionMix((pairs.side,), (train.batch_size,), train.seed, train.steps)

    def read(first_step: int, rows_of: loop.RowsOf) -> Iterator[batches.Batch]:
        def decode(record: Any, side: int) -> dict[str, Any]:
            return pairs.decode(record, record["place"])

        for batch in resolutions.batches(run.source, mix, first_step, decode, rows_of):
            yield pairs.finished(batch)

    def load_params(path: str, wanted: Any) -> Any:
        opened = open_checkpoint(path)
        with on_host():
            before = opened.tokenizer().fingerprint
        if before != run.system.tokenizer.fingerprint:
            raise UserError(
                f"train.init_from {path} was trained with another tokenizer than config.system {config.system}; name "
                "the same system for both stages"
            )
        params = {NETWORK: opened.upscaler_params(wanted[NETWORK])}
        if TRANSFORMER in wanted:
            params[TRANSFORMER] = opened.transformer_params(wanted[TRANSFORMER])
        return params

    placed = {}
    if pairs.text_encoder is not None:
        on_device = TextOnDevice(pairs.text_encoder, layout)
        pairs.text_encoder.place(on_device.layout)
        placed["placed"] = on_device
    return loop.run(
        run.workdir,
        train,
        build_step(parts, layout, train.seed),
        loop.Data(read, lambda step: step * train.batch_size, on_device=to_features, **placed),
        config=config.to_dict() | {"origin": origin.describe(_data_before(run))},
        hooks=[loop.Hook(train.evaluate_every, _evaluation(run, to_features, **placed))],
        load_params=load_params,
    )


def _data_before(run: _Run) -> list[str]:
    """Names the data behind the system and behind what the run begins with."""
    return list(
        dict.fromkeys([*run.system.trained_on, *start.data_before(run.train, run.workdir, "upscaler")])
    )


def _to_features(encode: FeaturesOnDevice) -> Any:
    """Makes what replaces `image` and `low` by their features on the devices."""

    def to_features(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        rest = {name: array for name, array in batch.items() if name not in ("image", "low")}
        true, low = (encode({"image": batch[name]})["features"] for name in ("image", "low"))
        return {**rest, "features": true, "low_features": low}

    return to_features


def _evaluation(run: _Run, to_features: Any, placed: Any = loop.Data.placed) -> Any:
    """Makes the hook that measures the loss on pictures that are held back, without dropout and flips."""
    loss_fn = make_loss(run.parts, train=False)
    size = run.train.batch_size // run.train.microbatches
    rows, layout, count = np.arange(size), run.layout.batch(size), len(run.validation)

    def each(params: Any, batch: dict[str, jax.Array]) -> Any:
        """The loss and the metrics of each picture."""
        return jax.vmap(lambda one: loss_fn(params, jax.tree.map(lambda x: x[None], one)))(batch)

    jitted = jax.jit(run.layout.traced(each), out_shardings=run.layout.replicated)

    def evaluate(step: int, state: TrainState) -> dict[str, Any]:
        found = []
        for first in range(0, count, size):
            # The last batch is filled up with its last picture, which counts once.
            numbers = [min(i, count - 1) for i in range(first, first + size)]
            made = [run.pairs.decode(run.validation[i], _EVALUATED + i) for i in numbers]
            batch = to_features(placed(run.pairs.finished(batches.stack(made)), rows, size, layout))
            loss_B, metrics = jitted(averaged(state), batch)
            of_picture = {"loss": loss_B, **metrics}
            found.append({name: np.asarray(x)[: count - first] for name, x in of_picture.items()})
        means = jax.tree.map(lambda *x: np.concatenate(x).mean(0).tolist(), *found) if found else {}
        return {f"validation_{name}": value for name, value in means.items()}

    return evaluate
