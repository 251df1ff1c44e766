"""Two stages of the model of process_run.py, as one of several processes of one device each:

    python tests/programs/process_stages.py [--coordinator ...] WORKDIR FIRST_STEPS SECOND_STEPS [TERM_AT]

TERM_AT is a step of the first stage in which this process gets SIGTERM.
"""

import argparse
import os
import sys
from types import SimpleNamespace

from infinity_jax.cli import options

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"

from helpers import toy_run
from programs import process_run, stage_run

from infinity_jax.cli import exit_codes
from infinity_jax.runtime import distributed, sharding, start_up
from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.training import loop, stages, state
from infinity_jax.training.state import TrainStep


def main(arguments: argparse.Namespace) -> int:
    start_up.log_to_stderr()
    distributed.start(options.processes_of(arguments), process_run.HEARTBEAT_SECONDS)
    layout = sharding.layout_of(parse_mesh(f"fsdp={arguments.processes or 1}"), "fsdp_tp")
    module = stage_run.toy()

    def train(config, workdir) -> None:
        new_state = state.new_state(process_run.variables, process_run.OPTIMISER, True, layout)
        first_stage = workdir.name == "first"
        events = {(arguments.term_at, "term")} if first_stage and arguments.term_at else set()
        loop.run(
            workdir,
            module.read_config(config).train,
            TrainStep(process_run.step_fn, *new_state, layout),
            loop.Data(
                lambda first, rows_of: process_run.batches(first, rows_of(process_run.BATCH), events),
                lambda step: step * process_run.BATCH,
            ),
            config.to_dict(),
            load_params=toy_run.load_params,
        )

    stages.run_config = module
    stages.train_transformer = SimpleNamespace(main=train)
    config = stage_run.config(first=arguments.first, second=arguments.second, third=2)
    stages.main(config, arguments.workdir)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    options.add_processes(parser)
    parser.add_argument("workdir")
    parser.add_argument("first", type=int)
    parser.add_argument("second", type=int)
    parser.add_argument("term_at", type=int, nargs="?", default=0)
    parsed = parser.parse_args()
    sys.exit(exit_codes.of(lambda: main(parsed), several=parsed.coordinator is not None))
