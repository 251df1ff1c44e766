"""`infinity-jax compile --warm`: a run's programs, compiled before it on a machine that lacks its devices."""

from pathlib import Path
from typing import Any

from absl import logging

from infinity_jax.data.encoded import FeaturesOnDevice
from infinity_jax.runtime import kept_programs
from infinity_jax.runtime.compiled_step import CompiledStep
from infinity_jax.tools.planning.chips import find_target
from infinity_jax.training import run_config, train_transformer


def main(config: Any, workdir: Path, topology: str, slices: int = 1) -> int:
    """Compiles the step of each aspect ratio of a run, and its picture encoder; returns how many programs are new.

    They are written into the workdir's `programs`, of each stage for progressive training. `infinity-jax train` with
    the same config, packages and kind and number of devices loads them; from others it compiles as without.

    Args:
      config: a ConfigDict of `infinity-jax train`.
      workdir: that of the run to come.
      topology, slices: see `find_target`.
    Raises:
      UserError: as `train_transformer.main`, or the topology is unknown or its devices do not fit the mesh.
    """
    devices = find_target(topology, slices).devices
    stages = {name: config.stages[name] for name in config.get("stages", {})} or {"": config}
    return sum(_warm(stage, workdir / name, devices) for name, stage in stages.items())


def _warm(config: Any, workdir: Path, devices: Any) -> int:
    run = run_config.read_config(run_config.with_labels(config), devices)
    tokenizer = run_config.fitting_tokenizer(run, workdir)
    feed = run_config.feed_of(run, tokenizer, run_config.fitting_text_encoder(run))
    step, programs = train_transformer.step_of(run, feed), kept_programs.of_run(workdir, run.layout)
    before = programs.count()
    pictures = FeaturesOnDevice(tokenizer, run.layout, programs.keep)
    batches = pictures.prepare(train_transformer.batch_shapes(run, feed))
    CompiledStep(step.jitted(), programs.keep).prepare(step.state_shapes(), batches, step.key_shape())
    new = programs.count() - before
    logging.info("%d programs in %s, %d of them new", before + new, programs.folder, new)
    return new
