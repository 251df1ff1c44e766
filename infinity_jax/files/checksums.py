"""Checksums of what is written, so that damage of a disk or of a copy is found before it is used.

A folder's `checksums.json` has size and xxh3 (64 bits) of files in it, by their path there; its own are those of the
list, so that damage to it is noticed too. Files that it does not name, and folders without one (of earlier versions, or
of others), are read as they are.
"""

import contextlib
import json
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from infinity_jax.errors import UserError
from infinity_jax.files import atomic

FILE = "checksums.json"
_THREADS = 8
_BLOCK = 1 << 25

# By the path of a file within its folder: its size in bytes and its xxh3 in hexadecimal.
Checksums = Mapping[str, tuple[int, str]]


def of_file(path: Path) -> tuple[int, str]:
    """Computes the size and the xxh3 of a file, in hexadecimal; OSError if it cannot be read."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        if not size:
            return 0, xxhash.xxh3_64_hexdigest(b"")
        hashed = xxhash.xxh3_64()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
            for start in range(0, size, _BLOCK):
                with view[start : start + _BLOCK] as part:
                    hashed.update(part)
                if hasattr(mmap, "MADV_DONTNEED"):  # read once: the process's memory stays small
                    content.madvise(mmap.MADV_DONTNEED, start, min(_BLOCK, size - start))
    return size, hashed.hexdigest()


def compute(folder: Path, names: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Computes the checksums of files of a folder, in threads; OSError if one cannot be read."""
    names = sorted(names)
    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(names, threads.map(lambda name: of_file(folder / name), names), strict=True))


def write(folder: Path, checksums: Checksums) -> None:
    """Writes a folder's checksums.json, whole or not at all."""
    files = {name: list(checksums[name]) for name in sorted(checksums)}
    atomic.write_json(folder / FILE, {"xxh3": files, "list": _of_list(files)})


def read(folder: Path) -> dict[str, tuple[int, str]]:
    """Reads a folder's checksums.json, {} where there is none. UserError if it is damaged."""
    path = folder / FILE
    try:
        content = json.loads(path.read_bytes())
        files = content["xxh3"]
        if content["list"] != _of_list(files):
            raise ValueError("its list is not what was written")
        return {name: (int(size), str(xxh3)) for name, (size, xxh3) in files.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or remove it to read unchecked") from error


def _of_list(files: object) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(files, sort_keys=True).encode())


def changed(folder: Path, checksums: Checksums) -> dict[str, str]:
    """Compares files with their checksums: those that differ, each with what is wrong with it."""

    def differs(name: str) -> str:
        size, xxh3 = checksums[name]
        try:
            # A file of another length need not be read.
            there = (folder / name).stat().st_size
            if there != size:
                return f"has {there} bytes in place of {size}"
            return "" if of_file(folder / name)[1] == xxh3 else "has other bytes than were written"
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"

    largest_first = sorted(checksums, key=lambda name: -checksums[name][0])
    with ThreadPoolExecutor(_THREADS) as threads:
        found = zip(largest_first, threads.map(differs, largest_first), strict=True)
        return {name: wrong for name, wrong in found if wrong}


def check(folder: Path, names: Iterable[str], remedy: str) -> None:
    """Raises UserError, naming the file and the remedy, if one of these files is not what was written.

    Those that the folder's checksums.json does not name pass.
    """
    known = read(folder)
    raise_damaged(folder, changed(folder, {name: known[name] for name in names if name in known}), remedy)


def raise_damaged(folder: Path, damaged: Mapping[str, str], remedy: str) -> None:
    """Raises UserError about what `changed` has found; nothing where it is empty."""
    for name, wrong in damaged.items():
        more = f" (and {len(damaged) - 1} more files there)" if len(damaged) > 1 else ""
        raise UserError(f"{folder / name} is damaged: it {wrong}{more}; {remedy}")


@contextlib.contextmanager
def beside(check: Callable[[], None]) -> Iterator[None]:
    """Runs `check` in another thread while the block reads; what it raises stands above what the block raises."""
    with ThreadPoolExecutor(1) as thread:
        checked = thread.submit(check)
        try:
            yield
        finally:
            checked.result()


@contextlib.contextmanager
def replacing(folder: Path, *names: str) -> Iterator[None]:
    """Lets the block write these files of a folder anew, and notes their checksums when it ends without an error.

    Meanwhile they have none, so that a kill does not leave files that are new beside checksums that are old.
    """
    others = {name: known for name, known in read(folder).items() if name not in names}
    if (folder / FILE).is_file():
        write(folder, others)
    yield
    write(folder, others | compute(folder, [name for name in names if (folder / name).is_file()]))
