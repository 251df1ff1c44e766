"""Whether memory stays flat in a long training: 10,000 steps of a tiny model, with all that a run does beside steps.

python experiments/soak.py --workdir runs/soak        # about four minutes on two CPU cores

Checkpoints every 500 steps, a sheet and an evaluation every 2,000. The resident memory of the process is read every
second; the median of the last thousand steps may exceed that of the first thousand by at most 5%.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

INTERVAL, MOST_GROWTH = 1.0, 0.05


def main() -> int:
    """Trains in a process of its own and prints the memory of each thousand steps; returns 1 if it grew."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10_000)
    arguments = parser.parse_args()
    values = {
        "steps": arguments.steps,
        "log_every": 50,
        "checkpoint_every": 500,
        "sample_every": 2000,
        "evaluate_every": 2000,
    }
    command = [sys.executable, "-m", "infinity_jax.cli", "train", "--config", "emoji:debug"]
    command += ["--workdir", str(arguments.workdir)]
    command += [f"--config.train.{name}={value}" for name, value in values.items()]
    process = subprocess.Popen(command)
    step_and_mib = []
    while process.poll() is None:
        time.sleep(INTERVAL)
        step, resident = last_step(arguments.workdir / "metrics.jsonl"), resident_mib(process.pid)
        if step and resident:
            step_and_mib.append((step, resident))
    if process.returncode:
        return process.returncode
    steps, mib = np.array(step_and_mib).T
    thousands = range(0, arguments.steps, 1000)
    medians = [float(np.median(mib[(steps > start) & (steps <= start + 1000)])) for start in thousands]
    print("steps      MiB")
    for start, median in zip(thousands, medians, strict=True):
        print(f"{start + 1000:>6}{median:>9.0f}")
    growth = medians[-1] / medians[0] - 1
    print(f"the last thousand against the first: {growth:+.1%}")
    return int(growth > MOST_GROWTH)


def last_step(metrics: Path) -> int:
    """The step of the last whole line."""
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return json.loads(whole[-1])["step"] if whole else 0


def resident_mib(pid: int) -> float:
    """What a process has in memory; 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    sizes = [line.split()[1] for line in text.splitlines() if line.startswith("VmRSS")]
    return int(sizes[0]) / 1024 if sizes else 0.0


if __name__ == "__main__":
    sys.exit(main())
