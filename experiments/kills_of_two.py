"""Kills a run of two processes at random moments, starts it again each time, and looks for what is lost.

    python experiments/kills_of_two.py [--kills 20] [--seed 0] [--steps 1000]

Two real processes on this machine train the small sharded model of tests/programs/process_run.py, with a checkpoint
every 3 steps. One of them, chosen at random, gets SIGKILL at a random moment while they start, while they run, or when
the folder of a checkpoint that is being written is seen. The other is ended too, as a cluster's manager does, and both
start again in the same workdir. Afterwards every logged
step must be there once, with the numbers of an undisturbed run, bit for bit. Prints a table, and exits 1 otherwise.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from helpers.processes import Run, lines  # pyright: ignore[reportMissingImports]

CHECKPOINT_EVERY = 3


def start(workdir: Path, steps: int) -> Run:
    return Run(workdir, 2, 2, "data=2,fsdp=2", steps, checkpoint_every=CHECKPOINT_EVERY)


def complete(workdir: Path) -> tuple[int, list[str]]:
    """The newest complete checkpoint, 0 if there is none, and the folders of incomplete ones."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return max([int(name) for name in names if name.isdecimal()], default=0), [n for n in names if "tmp" in n]


def until(run: Run, condition: Callable[[], bool]) -> None:
    """Returns when `condition` holds or a process has ended."""
    while not condition() and all(process.poll() is None for process in run.processes):
        time.sleep(0.001)


def after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def kill_once(workdir: Path, steps: int, moment: str, draw: random.Random, startup: float) -> dict:
    """Starts the run, kills it, and says what was left."""
    (before, old), victim = complete(workdir), draw.randrange(2)
    run, begin = start(workdir, steps), time.monotonic()
    if moment == "start":
        until(run, after(draw.uniform(0, startup)))
    else:
        until(run, lambda: complete(workdir)[0] > before)
        until(run, after(draw.uniform(0, 2)))
    if moment == "save":
        until(run, lambda: bool(complete(workdir)[1]))
        until(run, after(draw.uniform(0, 0.05)))
    run.processes[victim].send_signal(signal.SIGKILL)
    seconds = time.monotonic() - begin
    run.processes[1 - victim].kill()
    codes, said = run.finish()
    if codes[victim] != -signal.SIGKILL:
        raise SystemExit(f"process {victim} ended by itself with {codes[victim]}:\n" + "\n".join(said))
    newest, left = complete(workdir)
    return {
        "moment": moment,
        "process": victim,
        "after": f"{seconds:.1f} s",
        "went on from": before,
        "newest complete": newest,
        "cut short": ", ".join(sorted(set(left) - set(old))) or "-",
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        undisturbed, disturbed = Path(folder) / "undisturbed", Path(folder) / "disturbed"
        run, begin = start(undisturbed, arguments.steps), time.monotonic()
        until(run, lambda: complete(undisturbed)[0] > 0)
        startup = time.monotonic() - begin
        codes, said = run.finish()
        if codes != [0, 0]:
            raise SystemExit("\n".join(said))
        print(
            f"undisturbed: {startup:.1f} s to the first checkpoint, {time.monotonic() - begin:.0f} s in all"
        )
        rows = []
        for number in range(arguments.kills):
            moment = ("save", "run", "save", "start")[number % 4]
            rows.append(kill_once(disturbed, arguments.steps, moment, draw, startup))
            row = {"kill": number + 1, **rows[-1]}
            if number == 0:
                print("| " + " | ".join(row) + " |\n" + "|---" * len(row) + "|")
            print("| " + " | ".join(map(str, row.values())) + " |", flush=True)
        codes, said = start(disturbed, arguments.steps).finish()
        if codes != [0, 0]:
            raise SystemExit("\n".join(said))
        same = lines(disturbed) == lines(undisturbed)
        backwards = [row for row in rows if row["newest complete"] < row["went on from"]]
        steps = [line["step"] for line in lines(disturbed)]
        missing = sorted(set(range(1, arguments.steps + 1)) - set(steps))
    cut = sum(row["cut short"] != "-" for row in rows)
    print(
        f"{arguments.kills} kills, {cut} in the middle of a save; steps missing: {missing or 'none'}, twice: "
        f"{len(steps) - len(set(steps))}; complete checkpoints lost: {len(backwards)}; "
        f"metrics {'equal' if same else 'DIFFER FROM'} those of the undisturbed run, bit for bit"
    )
    return 0 if same and not missing and not backwards else 1


if __name__ == "__main__":
    sys.exit(main())
