"""Two trees of this repository by one benchmark, in turn: what a change made of its numbers.

python benchmarks/paired.py --before ../before --rounds 3 sampling.py --size 125m --budget 0.06M --transformer-only

Each round runs the script of the other tree and then that of this one, each with its own package, so that both see the
same machine. The rest of the line goes to both. Every number that both write as JSON is printed: the medians over the
rounds, and the median of the ratios of a round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

THIS = Path(__file__).resolve().parent.parent


def main() -> None:
    """Prints a table of before, after and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--before", type=Path, required=True, metavar="FOLDER", help="the other tree")
    parser.add_argument("--rounds", type=int, default=3, help="how often each script runs")
    parser.add_argument("script", help="a file of benchmarks/ that takes --json")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="options of the script")
    arguments = parser.parse_args()
    rounds = [
        [_numbers(tree, arguments.script, arguments.options) for tree in (arguments.before.resolve(), THIS)]
        for _ in range(arguments.rounds)
    ]
    print(f"{'':>26}  {'before':>12}  {'after':>12}  {'ratio':>7}  least to most")
    for name in (name for name in rounds[0][0] if name in rounds[0][1]):
        before, after = ([pair[i][name] for pair in rounds] for i in (0, 1))
        ratios = [b / a for a, b in zip(before, after, strict=True) if a]
        if ratios:
            print(
                f"{name:>26}  {statistics.median(before):12.6g}  {statistics.median(after):12.6g}  "
                f"{statistics.median(ratios):7.3f}  {min(ratios):.3f} to {max(ratios):.3f}"
            )


def _numbers(tree: Path, script: str, options: list[str]) -> dict[str, float]:
    """Runs a tree's script; returns the numbers of its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "numbers.json"
        command = [sys.executable, tree / "benchmarks" / script, *options, "--json", out]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)
        report = json.loads(out.read_text())
    return {name: x for name, x in report.items() if isinstance(x, int | float) and not isinstance(x, bool)}


if __name__ == "__main__":
    main()
