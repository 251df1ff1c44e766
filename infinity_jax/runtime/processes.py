"""What a user says about the processes of a run. Nothing of jax is imported here, so that --help is quick."""

import dataclasses

from infinity_jax.errors import UserError

PLATFORMS = ("tpu", "gpu", "cpu")
LONGEST_START = 7 * 24 * 3600


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
        if not 0 < self.start_timeout <= LONGEST_START:  # nor is nan
            raise UserError(
                f"--start-timeout {self.start_timeout:g} must be above 0 seconds, and at most {LONGEST_START}, a week"
            )
