"""What the first call of `InfinityPipeline` takes in a process, with and without kept programs, and the calls after it.

python benchmarks/first_call.py        # about three minutes on two CPU cores

Each process draws with the bundled checkpoint; the first finds no compiled programs and leaves its own to the second.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

SIZES = (1, 4, 16)
REPEATS = 3


def of_one_process() -> dict[str, list[float]]:
    """Seconds of the first call for each number of pictures, and the best of the calls after it."""
    from infinity_jax import InfinityPipeline

    started = time.perf_counter()
    pipeline = InfinityPipeline.from_pretrained("bundled")
    first, later = [time.perf_counter() - started], []
    for size in SIZES:
        seconds = []
        for _ in range(1 + REPEATS):
            started = time.perf_counter()
            pipeline(["red heart"] * size)
            seconds.append(time.perf_counter() - started)
        first.append(seconds[0])
        later.append(min(seconds[1:]))
    return {"first": first, "later": later}


def main() -> None:
    """Runs two processes one after the other and prints a table."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"INFINITY_DATA": folder}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        print(f"{'':24}{'load':>8}" + "".join(f"{f'{size} pictures':>12}" for size in SIZES))
        for kind in ("nothing kept", "programs kept"):
            command = [sys.executable, __file__, "process"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            seconds = json.loads(done.stdout.splitlines()[-1])
            print(f"{kind + ', first call':24}" + "".join(f"{s:>12.2f}" for s in seconds["first"])[4:])
        print(f"{'later calls':32}" + "".join(f"{s:>12.2f}" for s in seconds["later"]))


if __name__ == "__main__":
    if sys.argv[1:] == ["process"]:
        print(json.dumps(of_one_process()))
    else:
        main()
