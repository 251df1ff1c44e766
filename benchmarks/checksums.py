"""What checksums cost: saving and loading with and without them, one after the other in one process.

python benchmarks/checksums.py                       # a state of 1 GB and a folder of weights of 1 GB
python benchmarks/checksums.py --gigabytes 0.1 --rounds 1
"""

import argparse
import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import jax

from infinity_jax.checkpoints import damage, folder
from infinity_jax.checkpoints.run import Checkpointer
from infinity_jax.files import checksums
from infinity_jax.training import optim
from infinity_jax.training import state as train_state

_ARRAYS = 16
_DATA = {"seed": 0, "next_step": 0, "examples": 0}


def parameters(gigabytes: float) -> dict[str, jax.Array]:
    """Draws float32 parameters of that size."""
    rows = max(1, int(gigabytes * 1e9 / 4 / 1024 / _ARRAYS))
    return {f"array{i}": jax.random.normal(jax.random.key(i), (rows, 1024)) for i in range(_ARRAYS)}


@contextlib.contextmanager
def without_checksums() -> Iterator[None]:
    """Neither computes nor compares them."""
    none = mock.patch.multiple(checksums, compute=lambda *_: {}, changed=lambda *_: {}, check=lambda *_: None)
    with none, mock.patch.object(damage, "_seal", lambda _: None):
        yield


def seconds(action: Callable[[], object]) -> float:
    """Measures one call; what was written before is on the disk already."""
    os.sync()
    started = time.perf_counter()
    jax.block_until_ready(action())
    return time.perf_counter() - started


def paired(name: str, action: Callable[[], object], rounds: int, gigabytes: float) -> None:
    """Prints the median seconds of a call with and without checksums, and of their ratios."""
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds):
        # In turn the first, which may find a cache warm or not.
        for sums in (True, False) if number % 2 else (False, True):
            with contextlib.nullcontext() if sums else without_checksums():
                times[sums].append(seconds(action))
    ratios = sorted(a / b for a, b in zip(times[True], times[False], strict=True))
    took = statistics.median(times[True])
    print(
        f"{name:32} {statistics.median(times[False]):6.2f} s without, {took:6.2f} s with checksums "
        f"({gigabytes / took:.2f} GB/s); ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--gigabytes", type=float, default=1.0, help="of the state and of the weights, default 1"
    )
    parser.add_argument("--rounds", type=int, default=5, help="pairs, default 5")
    parser.add_argument("--dir", help="a folder on the disk to measure; default: a temporary one")
    arguments = parser.parse_args()
    gigabytes, rounds = arguments.gigabytes, arguments.rounds
    with tempfile.TemporaryDirectory(dir=arguments.dir) as where:
        run(Path(where), gigabytes, rounds)


def run(where: Path, gigabytes: float, rounds: int) -> None:
    """Measures in the folder `where`."""
    optimiser = optim.make_optimiser(optim.OptimConfig(), 10)
    state = train_state.create(
        parameters(gigabytes / 4), optimiser, ema=True
    )  # average and two moments beside
    runs, step = where / "checkpoints", iter(range(1, 1000))
    with contextlib.closing(Checkpointer(runs, keep=1)) as checkpointer:

        def save() -> None:
            checkpointer.save(next(step), state, _DATA, {})
            checkpointer.wait()

        save()
        paired("save a state", save, rounds, gigabytes)
        checkpointer.save(next(step), state, _DATA, {})
        checkpointer.wait()
        shapes = jax.eval_shape(lambda: state)
        paired("resume: read a state", lambda: checkpointer.restore(shapes)[0], rounds, gigabytes)
        paired(
            "sample: its averaged weights",
            lambda: checkpointer.restore_params(shapes.params),
            rounds,
            gigabytes / 4,
        )
    shutil.rmtree(runs)
    weights, params = where / "transformer.safetensors", parameters(gigabytes)

    def export() -> None:
        with checksums.replacing(where, weights.name):
            folder.write_arrays(weights, params, "float32")

    export()
    paired("export weights", export, rounds, gigabytes)
    export()
    paired("read exported weights", lambda: folder.read_arrays(weights), rounds, gigabytes)
    took = min(seconds(lambda: checksums.of_file(weights)) for _ in range(3))
    speed = weights.stat().st_size / 1e9 / took
    print(f"one file, one thread: {speed:.1f} GB/s from the page cache, so {8 / speed:.2f} s for 8 GB")


if __name__ == "__main__":
    main()
