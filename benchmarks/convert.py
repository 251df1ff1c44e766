"""Time and memory of converting a randomly filled 2B checkpoint there and back.

python benchmarks/convert.py --dtype bfloat16 --json convert.json

Needs room for three copies of the weights, and nothing else: 27 GB in float32, 13 GB in 16 bits.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# numpy and the package are imported inside steps: a process that is started inherits the peak memory of this one.
SIZE = "2b"
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
PARAMETERS = 2_204_564_032
COMMAND = [sys.executable, "-m", "infinity_jax.cli", "convert", "--kind", "transformer"]


def main() -> None:
    """Runs every step in a process of its own and prints its seconds and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dtype", choices=BYTES, default="float32", help="of the published weights")
    parser.add_argument("--folder", help="where the temporary folder lies; default: the system's")
    parser.add_argument("--json", metavar="FILE", help="where the numbers go as well")
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        step, *values = arguments.step
        return {"make": make, "compare": compare}[step](*values)
    size = PARAMETERS * BYTES[arguments.dtype]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        free, needed = shutil.disk_usage(folder).free, 3.05 * size
        if free < needed:
            sys.exit(f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed; try --folder")
        rows = measure(Path(folder), arguments.dtype)
    print(f"{size / 1e9:.2f} GB of {arguments.dtype}\n{'step':>12} {'seconds':>10} {'peak GB':>10}")
    for name, numbers in rows.items():
        print(f"{name:>12} {numbers['seconds']:>10} {numbers['peak_gb']:>10}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"dtype": arguments.dtype, **rows}) + "\n")


def measure(folder: Path, dtype: str) -> dict[str, dict[str, float]]:
    """Step -> {"seconds", "peak_gb"}."""
    published, ours, back = (str(folder / name) for name in ("published.pth", "ours", "back.pth"))
    itself = [sys.executable, __file__, "--step"]
    steps = {
        "make": [*itself, "make", published, dtype],
        "convert": [*COMMAND, "--from", published, "--config", SIZE, "--out", ours],
        "to torch": [*COMMAND, "--from", ours, "--to-torch", back],
        "compare": [*itself, "compare", published, back],
    }
    return {name: run(command) for name, command in steps.items()}


def run(command: list[str]) -> dict[str, float]:
    """Seconds and peak resident memory of one process; the benchmark ends if it fails."""
    started = time.monotonic()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return {"seconds": round(time.monotonic() - started, 1), "peak_gb": round(usage.ru_maxrss / 1e6, 2)}


def make(path: str, dtype: str) -> None:
    """A .pth file with the published names and random values of the dtype."""
    import numpy as np

    from infinity_jax.files.lazy_tensor import dtype_named
    from infinity_jax.files.torch_writer import write_torch_file
    from infinity_jax.presets import PRESETS
    from infinity_jax.tools.convert.links import Buffer
    from infinity_jax.tools.convert.transformer_names import transformer_links

    preset, random, wanted = PRESETS[SIZE], np.random.default_rng(0), dtype_named(dtype)
    links = transformer_links(preset.transformer, preset.block_chunks)
    arrays = (
        link.values.astype(wanted)
        if isinstance(link, Buffer)
        else random.standard_normal(link.published_shape, np.float32).astype(wanted)
        for link in links
    )
    write_torch_file(Path(path), {link.published: (wanted, link.published_shape) for link in links}, arrays)


def compare(first: str, second: str) -> None:
    """Ends with an error unless both files hold the same tensors in the same order."""
    from infinity_jax.files.tensors import open_tensors

    one, other = (open_tensors(Path(path), "transformer") for path in (first, second))
    assert list(one) == list(other)
    for name, tensor in one.items():
        a, b = tensor.read(), other[name].read()
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), name
    print(f"{len(one)} tensors are equal")


if __name__ == "__main__":
    main()
