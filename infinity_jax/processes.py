"""What a user says about the processes of a run. Nothing of jax is imported here, so that --help is quick."""

import argparse
import dataclasses

from infinity_jax.errors import UserError

PLATFORMS = ("tpu", "gpu", "cpu")


@dataclasses.dataclass(frozen=True)
class Processes:
    """Which processes make a run.

    Attributes:
      coordinator: "HOST:PORT" where process 0 can be reached; "auto" for what jax detects itself (Cloud TPU, GKE,
        Slurm, Open MPI); None for a process alone.
      processes: how many there are; with "auto" what must be detected, None for anything.
      process: the number of this one, from 0; None with "auto".
      platform: the devices that must be found, one of `PLATFORMS`; None for any.
      start_timeout: seconds until all processes and their devices must be there.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    platform: str | None = None
    start_timeout: float = 300.0

    def __post_init__(self):
        numbers = (self.processes, self.process)
        if self.coordinator is None and numbers != (None, None):
            raise UserError("--processes and --process need --coordinator HOST:PORT (or auto)")
        if self.coordinator == "auto" and self.process is not None:
            raise UserError("--coordinator auto numbers the processes itself; leave out --process")
        if self.coordinator not in (None, "auto") and None in numbers:
            raise UserError(
                f"--coordinator {self.coordinator} needs --processes, how many there are, and --process, which of them "
                "this is, from 0"
            )
        if self.start_timeout <= 0:
            raise UserError(f"--start-timeout {self.start_timeout:g} must be above 0 seconds")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the fields of `Processes` as options."""
    group = command.add_argument_group("several processes (one alone needs none of this)")
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT|auto",
        help="where process 0 is reached; auto: as jax detects it (Cloud TPU, GKE, Slurm)",
    )
    group.add_argument("--processes", type=int, metavar="N", help="how many processes there must be")
    group.add_argument("--process", type=int, metavar="I", help="which of them this is, from 0")
    group.add_argument("--platform", choices=PLATFORMS, help="devices that must be found, or it fails")
    group.add_argument(
        "--start-timeout",
        type=float,
        default=Processes.start_timeout,
        metavar="SECONDS",
        help="until all processes and devices must be there, default %(default)g",
    )


def of(arguments: argparse.Namespace) -> Processes:
    """What the options of `add_arguments` say; UserError where they do not go together."""
    names = [field.name for field in dataclasses.fields(Processes)]
    return Processes(**{name: getattr(arguments, name) for name in names})
