"""Time and memory of `make quickstart`, where everything is installed already.

python benchmarks/quickstart.py --json quickstart.json
"""

import argparse
import json
import resource
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Runs the target and prints seconds and the peak memory of its largest process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", metavar="FILE", help="where the numbers go as well")
    arguments = parser.parse_args()
    subprocess.run(["make", ".venv/installed"], cwd=ROOT, check=True)
    started = time.monotonic()
    subprocess.run(["make", "quickstart"], cwd=ROOT, check=True)
    peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    numbers = {"seconds": round(time.monotonic() - started, 1), "peak_gib": round(peak_kib / 2**20, 2)}
    print(f"{'seconds':>10} {'peak GiB':>10}\n{numbers['seconds']:>10} {numbers['peak_gib']:>10}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(numbers) + "\n")


if __name__ == "__main__":
    main()
