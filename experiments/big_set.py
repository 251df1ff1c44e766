"""Ten thousand JPEGs, 3% of them broken in twenty ways: prepared, killed in between, and read for two epochs.

    python experiments/big_set.py [--pictures 10000] [--side 256] [--json FILE]

`infinity-jax prepare` gets SIGKILL once, and the same command goes on. Then two processes read their shares of the
batches of an epoch and a half, decoded as for training at 0.06M; all are stopped, and three processes go on to the end
of the second epoch. Afterwards every bad file must be named with its reason and every good picture must have come once
in every pass over its aspect ratio; less than a batch of each ratio waits for the third epoch. Prints what was
counted, and the peak memory of each process; exits 1 if anything is lost, repeated or above 1.5 GB, if a reason does
not fit the breakage, or if a reader of 30 steps or more grows by a tenth after a third of them.
"""

import argparse
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers import pictures as synthetic_pictures  # pyright: ignore[reportMissingImports]

from infinity_jax import scales
from infinity_jax.data import captions, feeds, pictures
from infinity_jax.data.prepared.buckets import BucketOrder
from infinity_jax.data.prepared.record_set import MixedRecords

BATCH, SEED, MOST_BYTES = 48, 0, 1.5e9
GROWTH, ENOUGH_STEPS = 1.1, 30


def order_of(shards: Path) -> BucketOrder:
    """The batches of all steps."""
    return BucketOrder(MixedRecords(f"records:{shards}").buckets, BATCH, SEED)


def peak_bytes(whose: int) -> int:
    """The most memory that a process, or any of its children, had at once."""
    return resource.getrusage(whose).ru_maxrss * 1024


def read(shards: Path, process: int, processes: int, first: int, last: int, out: Path) -> None:
    """Reads one process's share of the steps and writes which picture was in which place."""
    records = MixedRecords(f"records:{shards}")

    def transform(ratio: str, record: dict[str, Any], draw) -> dict[str, Any]:
        height, width = (16 * n for n in scales.make_schedule("0.06M", ratio).last)
        caption = captions.choose(record["captions"], 0.8, 0.2, draw)
        return {
            "image": pictures.decode(record["image"], height, width),
            "caption": caption,
            "id": record["id"],
        }

    rows = range(process, BATCH, processes)
    stream = feeds.bucket_batches(records, order_of(shards), transform, rows, first)
    peaks = [peak_bytes(resource.RUSAGE_SELF)]
    with open(out, "w") as file:
        for step in range(first, last):
            batch = next(stream)
            file.writelines(f"{step} {row} {name}\n" for row, name in zip(rows, batch["id"], strict=True))
            peaks.append(peak_bytes(resource.RUSAGE_SELF))
        third = peaks[len(peaks) // 3]
        file.write(f"memory {third} {peaks[-1]}\n")


def run_readers(
    shards: Path, processes: int, first: int, last: int, folder: Path
) -> tuple[list[str], list[list[int]]]:
    """What several real processes read: lines "step row id", and each one's peak bytes after a third and at the end."""
    outs = [folder / f"{processes}-{i}.txt" for i in range(processes)]
    command = [sys.executable, __file__, "--read", str(shards)]
    running = [
        subprocess.Popen([*command, *map(str, (i, processes, first, last)), str(out)])
        for i, out in enumerate(outs)
    ]
    if sum(process.wait() != 0 for process in running):
        sys.exit("a reader failed")
    lines = [line for out in outs for line in out.read_text().splitlines()]
    memory = [[int(n) for n in line.split()[1:]] for line in lines if line.startswith("memory")]
    return [line for line in lines if not line.startswith("memory")], memory


def prepare(source: Path, shards: Path) -> tuple[float, int]:
    """Seconds that `infinity-jax prepare` took, killed once in between, and how many parts the second run found."""
    command = [sys.executable, "-m", "infinity_jax.cli", "prepare", "--workers", "2"]
    command += ["--source", f"jsonl:{source / 'splits'}", "--out", str(shards)]
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list((shards / "parts").glob("0*"))) < 3:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list((shards / "parts").glob("0*")))
    subprocess.run(command, cwd=ROOT, check=True)
    return time.monotonic() - started, done


def check_memory(prepare_peak: int, memory: list[list[int]], steps: int) -> list[str]:
    """What is wrong with the peaks of prepare's processes and of the readers, after a third and at the end."""
    wrong = []
    if max(prepare_peak, *(last for _, last in memory)) > MOST_BYTES:
        wrong.append("a process needs more than 1.5 GB")
    if steps >= ENOUGH_STEPS and any(last > GROWTH * third for third, last in memory):
        wrong.append("a reader's memory grows")
    return wrong


def check_reasons(named: dict[str, str], bad: dict[str, str]) -> list[str]:
    """What is wrong with the names and reasons of the bad files."""
    if named.keys() != bad.keys():
        return [f"named as broken: {len(named)} of {len(bad)}"]
    wanted = {name: synthetic_pictures.REASONS.get(kind, named[name]) for name, kind in bad.items()}
    return [f"{name} is {bad[name]}, called {named[name]}" for name in bad if named[name] != wanted[name]]


def check(shards: Path, lines: list[str], good: set[str]) -> tuple[dict[str, int], list[str]]:
    """What was counted, and what is wrong."""
    order = order_of(shards)
    rows: dict[str, dict[int, str]] = {}
    for line in lines:
        step, row, name = line.split(" ", 2)
        bucket, number = order.batch(int(step))
        place = rows.setdefault(bucket.ratio, {})
        if number * BATCH + int(row) in place:
            return {}, [f"place {row} of step {step} was read twice"]
        place[number * BATCH + int(row)] = name.rsplit("/", 1)[-1]
    wrong, times, passes = [], Counter(), 0
    records = MixedRecords(f"records:{shards}")
    for bucket in order.buckets:
        places = rows.get(bucket.ratio, {})  # nothing of a ratio with less than a batch in both epochs
        names = [places[i] for i in range(len(places))]  # a gap raises KeyError
        times.update(names)
        mine = {records.read(bucket.ratio, 0, i)["id"].rsplit("/", 1)[-1] for i in range(bucket.quota)}
        for begin in range(0, len(names), bucket.quota):
            seen = names[begin : begin + bucket.quota]
            whole = len(seen) == bucket.quota
            passes += whole
            if len(set(seen)) != len(seen) or (whole and set(seen) != mine) or not set(seen) <= mine:
                wrong.append(f"ratio {bucket.ratio}, pass {begin // bucket.quota}: not every picture once")
        waiting = 2 * bucket.quota - len(names)
        if not 0 <= waiting < BATCH:
            wrong.append(f"ratio {bucket.ratio}: {waiting} pictures wait")
    if times.keys() - good:
        wrong.append(f"read although broken: {sorted(times.keys() - good)[:3]}")
    counted = {"ratios": len(order.buckets), "whole_passes": passes, "read": sum(times.values())}
    return {**counted, "waiting": 2 * len(good) - sum(times.values())}, wrong


def main() -> int:
    """Runs everything in a temporary folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument(
        "--side", type=int, default=256, help="the pictures have about this many pixels a side"
    )
    parser.add_argument("--json", metavar="FILE", help="where the numbers go as well")
    parser.add_argument("--read", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        process, processes, first, last = map(int, arguments.read[1:5])
        read(Path(arguments.read[0]), process, processes, first, last, Path(arguments.read[5]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        source, shards = Path(folder) / "source", Path(folder) / "shards"
        good, bad = synthetic_pictures.write_release(source, arguments.pictures, arguments.side)
        seconds, found = prepare(source, shards)
        prepare_peak = peak_bytes(resource.RUSAGE_CHILDREN)
        report = json.loads((shards / "report.json").read_text())
        named = {row["id"].rsplit("/", 1)[-1]: row["reason"] for row in report["skipped"]["rows"]}
        order = order_of(shards)
        middle, end = (order.first_step(1) + order.first_step(2)) // 2, order.first_step(2)
        first, memory = run_readers(shards, 2, 0, middle, Path(folder))
        second, more = run_readers(shards, 3, middle, end, Path(folder))
        counted, wrong = check(shards, first + second, good)
    wrong += check_reasons(named, bad) + check_memory(prepare_peak, memory + more, end - middle)
    numbers = {
        "pictures": arguments.pictures,
        "good": len(good),
        "bad_named": len(named),
        "by_reason": report["skipped"]["by_reason"],
        "prepare_seconds_with_a_kill": round(seconds, 1),
        "parts_kept_over_the_kill": found,
        "steps": end,
        **counted,
        "prepare_peak_gb": round(prepare_peak / 1e9, 2),
        "peak_gb_after_a_third_and_at_the_end": [[round(n / 1e9, 2) for n in pair] for pair in memory + more],
        "wrong": wrong,
    }
    print(json.dumps(numbers, indent=1))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(numbers) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
