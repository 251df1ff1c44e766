"""Reads mutated files: none may crash a reader, hang it, fill the memory, or pass with an array that was flipped.

    python experiments/fuzz.py [--files 20000] [--seed 0] [--workers 2] [--only pth,json] [--first 0]

Of each kind as many files are made as --files says, each from a whole one by one to five changes that its number and
the seed decide: bits flipped, bytes cut out, doubled, or taken from another place, lengths set to extremes, the end cut
off, for JSON values and brackets that nobody expects. Worker processes read them. A reader may return what was in the
whole file, or raise UserError with one printable line; all else is counted, and the first of each sort is shown with
its number, which --first and --files 1 read again. Prints a table; exits 1 if there is a crash, a hang above 10 s, more
than 1 GiB above the process's start, a traceback, or a flipped array. About 6 minutes on 2 cores.
"""

import argparse
import collections
import itertools
import multiprocessing
import multiprocessing.connection
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz_kinds import KINDS, ROOT, Kind, mutated

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

HANG_SECONDS, MOST_BYTES = 10.0, 1 << 30


def outcome(kind: Kind, number: int, seed: int, whole: dict[str, Any], name_of: str) -> tuple[str, str]:
    """Reads one mutated file; how that ended, and more about it."""
    from infinity_jax.errors import UserError, printable

    draw = random.Random(f"{seed} {name_of} {number}")
    name, content = draw.choice(kind.wholes)
    path = kind.write(name, mutated(content, draw, kind.text))
    try:
        read = kind.read(path)
    except UserError as error:
        said = printable(str(error))  # as the command line does
        good = said.replace("\n", " ").isprintable() and len(said) < 2100
        return ("refused", "") if good else ("bad message", f"{name}: {said[:300]!r}")
    except OSError as error:
        # The command line explains those that name a file.
        return ("refused", "") if error.filename else ("traceback", f"{name}: {error!r}"[:300])
    except MemoryError:
        return "memory", name
    except BaseException as error:
        return "traceback", f"{name}: {type(error).__name__}: {str(error)[:200]!r}"
    if name not in whole:
        whole[name] = kind.read(kind.write(name, content))
        kind.write(name, mutated(content, draw, kind.text))
    if isinstance(read, dict):
        same = read.keys() == whole[name].keys() and all(
            read[n].shape == x.shape and read[n].tobytes() == x.tobytes() for n, x in whole[name].items()
        )
        if not same and kind.flipped(whole[name], read, name):
            return "flipped array", name
        return ("identical" if same else "other, as its format has no checksum"), name
    return ("identical" if read == whole[name] else "other, as its format has no checksum"), name


def worker(connection: Any, name: str, seed: int, numbers: range) -> None:
    """Reads files one after the other: ("begin", number), then ("end", number, outcome, more, bytes)."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    from absl import logging

    logging.set_verbosity(logging.FATAL)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    os.dup2(sys.stderr.fileno(), 2)
    here = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=here) as folder:
        kind = KINDS[name](Path(folder))
        whole = {file: kind.read(kind.write(file, content)) for file, content in kind.wholes}
        start = _memory("VmRSS")
        limit = _memory("VmSize") + (4 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number in numbers:
            connection.send(("begin", number))
            Path("/proc/self/clear_refs").write_text("5")
            how, more = outcome(kind, number, seed, whole, name)
            took = max(0, _memory("VmHWM") - start)
            if took > MOST_BYTES:
                how, more = "memory", f"{more} {took >> 20} MiB"
            connection.send(("end", number, how, more, took))


def _memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise ValueError(name)


def rounds(name: str, seed: int, numbers: range) -> Iterator[tuple[int, str, str, int, float]]:
    """Has all numbers read, by a new process after each crash or hang and every 2,000 files."""
    context = multiprocessing.get_context("spawn")
    first = numbers.start
    while first < numbers.stop:
        part = range(first, min(numbers.stop, first + 2000))
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, args=(theirs, name, seed, part), daemon=True)
        process.start()
        theirs.close()
        busy, began = None, time.monotonic()
        while first < part.stop:
            patience = 120.0 if busy is None else HANG_SECONDS + 1
            if not ours.poll(patience):
                process.kill()
                yield first, "hang", "", 0, time.monotonic() - began
                first += 1
                break
            try:
                message = ours.recv()
            except EOFError:
                process.join()
                if busy is None:
                    raise SystemExit(f"a worker for {name} ended before it had read a file") from None
                yield first, "crash", f"exit code {process.exitcode}", 0, 0.0
                first += 1
                break
            if message[0] == "begin":
                busy, began = message[1], time.monotonic()
                continue
            took = time.monotonic() - began
            how = "hang" if took > HANG_SECONDS else message[2]
            yield message[1], how, message[3], message[4], took
            first = message[1] + 1
        process.kill()
        process.join()


def share(
    arguments: tuple[str, int, range],
) -> tuple[str, collections.Counter, dict[str, tuple[int, str]], int, float]:
    """Runs one share of the files of a kind; counts, the first number of each sort, the most bytes and seconds."""
    name, seed, numbers = arguments
    counts: collections.Counter = collections.Counter()
    examples: dict[str, tuple[int, str]] = {}
    most, longest = 0, 0.0
    for number, how, more, took, seconds in rounds(name, seed, numbers):
        counts[how] += 1
        sort = (
            f"{how}: {':'.join(more.split(':')[:2])}" if how in ("traceback", "bad message", "crash") else how
        )
        examples.setdefault(sort, (number, more))
        most, longest = max(most, took), max(longest, seconds)
    return name, counts, examples, most, longest


COLUMNS = ("refused", "identical", "other, as its format has no checksum", "flipped array", "traceback",
           "bad message", "crash", "hang", "memory")  # fmt: skip
GOOD = COLUMNS[:3]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default=",".join(KINDS))
    arguments = parser.parse_args()
    begin, bad = time.monotonic(), 0
    last = arguments.first + arguments.files
    edges = [arguments.first + arguments.files * i // arguments.workers for i in range(arguments.workers)] + [
        last
    ]
    print(
        "| kind | " + " | ".join(COLUMNS) + " | most memory | longest |\n" + "|---" * (len(COLUMNS) + 3) + "|"
    )
    notes = []
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(arguments.workers) as threads:
        for name in arguments.only.split(","):
            shares = [(name, arguments.seed, range(*edge)) for edge in itertools.pairwise(edges)]
            total: collections.Counter = collections.Counter()
            most, longest, examples = 0, 0.0, {}
            for _, counts, found, bytes_of, seconds in threads.map(share, shares):
                total += counts
                examples = found | examples
                most, longest = max(most, bytes_of), max(longest, seconds)
            cells = [f"{total[column]:,}" for column in COLUMNS]
            print(f"| {name} | " + " | ".join(cells) + f" | {most >> 20} MiB | {longest:.2f} s |", flush=True)
            bad += sum(total[column] for column in COLUMNS if column not in GOOD)
            notes += [
                f"{name} {number}: {sort.split(':')[0]}: {more}"
                for sort, (number, more) in examples.items()
                if sort.split(":")[0] not in GOOD
            ]
    print(f"\nseed {arguments.seed}, {time.monotonic() - begin:.0f} s")
    print("\n".join(notes[:60]))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
