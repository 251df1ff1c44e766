"""Writes an original into shards by aspect ratio, in parallel processes; a killed run resumes where it stood.

    DIR/parts/00012/3x2.array_record ...   the pictures of one part of the original, a file for each ratio
    DIR/parts/00012/part.json              what was counted and skipped
    DIR/parts/00012/columns.npz            size, captions' lengths and scores of each picture, file after file
    DIR/index.json                         all files with their counts; there once everything is done
    DIR/report.json

A part's folder gets its name when it is whole; parts that have it are not read again.
"""

import contextlib
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from infinity_jax import scales
from infinity_jax.data import pictures, svg
from infinity_jax.data.captions import plain
from infinity_jax.data.originals.by_name import find_parts
from infinity_jax.data.originals.rows import Part, Row, Skipped
from infinity_jax.data.prepared import index, report, shards
from infinity_jax.errors import UserError
from infinity_jax.files import atomic, locks, paths, reading
from infinity_jax.files.progress import counted

# What a killed process leaves of part 00012: .00012.TOKEN.unfinished; of earlier versions .00012.4711 or .00012.
_UNFINISHED = re.compile(r"\.\d{5,}(\.[0-9a-f]+)?(\.unfinished)?")


def prepare(source: str, out: Path, workers: int) -> dict[str, Any]:
    """Writes the pictures of `source` into `out` and returns the report, which lies in report.json too.

    Args:
      source: see `originals.by_name`.
      out: a folder that is new, or that the same source was or is being prepared into.
      workers: processes.
    Raises:
      UserError: the source cannot be read, `out` holds another set, no picture is usable, the disk is full, or a
        process was killed; what is done is kept, and the same command resumes it.
    """
    started = time.monotonic()
    parts = find_parts(source)
    digest = hashlib.sha256(
        "\n".join(part.name() for part in parts).encode(errors="surrogateescape")
    ).hexdigest()
    with locked(out, {"source": source, "parts": len(parts), "hash": digest}):
        todo = [number for number in range(len(parts)) if not _folder(out, number).is_dir()]
        if done := len(parts) - len(todo):
            logging.info("%d of %d parts were prepared before", done, len(parts))
        _write_parts(out, parts, todo, workers)
        folders = [_folder(out, number) for number in range(len(parts))]
        index.write(out, folders)
        summary = report.write(out, source, folders)
    if not summary["pictures"]:
        raise UserError(f"{source} has no usable picture; {out / 'report.json'} says why each was skipped")
    logging.info(
        "%s: %d pictures in %s, %d rows skipped, %.0f s",
        *(source, summary["pictures"], out, summary["skipped"]["count"], time.monotonic() - started),
    )
    return summary


def _folder(out: Path, number: int) -> Path:
    return out / "parts" / f"{number:05d}"


@contextlib.contextmanager
def locked(out: Path, note: Mapping[str, Any]) -> Iterator[None]:
    """Keeps other processes out of a folder that is being written, and removes what a killed one left half done.

    Args:
      out: the folder; it may be new.
      note: what goes into it, kept in source.json.
    Raises:
      UserError: another process writes it, something else than `note` was begun there, or a file cannot be written.
    """
    parts = out / "parts"
    try:
        parts.mkdir(parents=True, exist_ok=True)
        with locks.alone(out / ".lock", f"prepares {out}", "wait for it or give another --out"):
            _claim(out, note)
            atomic.clean(out)
            for left in parts.iterdir():
                if _UNFINISHED.fullmatch(left.name) and left.is_dir():
                    shutil.rmtree(left)
            yield
    except OSError as error:
        raise UserError(_stopped(out, error)) from error


def _stopped(out: Path, error: OSError) -> str:
    if error.errno in atomic.FULL:
        return f"{out} cannot be written: {error}; free some space or give another --out; the same command resumes it"
    if Path(str(error.filename)).is_relative_to(out):
        return (
            f"{out} cannot be written: {error}; mend that or give another --out; the same command resumes it"
        )
    return f"preparing {out} stopped: {error}; mend that, and the same command resumes it"


def _claim(out: Path, note: Mapping[str, Any]) -> None:
    """Notes in source.json what goes into `out`; UserError if it is something else than before."""
    file = out / "source.json"
    if not file.is_file():
        atomic.write_json(file, note)
        return
    claimed = reading.read_object(file, f"remove {out} or give another --out")
    for name, value in note.items():
        if claimed.get(name) != value:
            changed = " (its files have changed)" if name == "hash" else ""
            raise UserError(
                f"{out} was begun with {name} {claimed.get(name)!r}, and this is {value!r}{changed}; "
                "give another --out or remove that folder"
            )


def _write_parts(out: Path, parts: Sequence[Part], todo: Sequence[int], workers: int) -> None:
    if workers == 1 or len(todo) < 2:
        for number in counted(todo, "preparing", len(todo), "parts"):
            _write_part(parts[number], _folder(out, number))
        return
    # Not forked: threads of libraries that are loaded already would be cut off.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(min(workers, len(todo)), context, _start_worker, (stop,))
    try:
        futures = [pool.submit(_write_part, parts[n], _folder(out, n)) for n in todo]
        for future in counted(as_completed(futures), "preparing", len(todo), "parts"):
            future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker was killed, perhaps for want of memory; the same command resumes, with fewer --workers if need be"
        ) from error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


_stop: Any = None


def _start_worker(stop: Any) -> None:
    global _stop
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent says when to stop
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        # A worker whose parent was killed would wait for work without end.
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _write_part(part: Part, folder: Path) -> None:
    """Writes the folder of one part, whole or not at all."""
    try:
        with atomic.writing_folder(folder) as temporary:
            _write_rows(part, temporary)
    except OSError:
        if not folder.is_dir():  # else the last worker of a killed run was quicker
            raise


def _write_rows(part: Part, folder: Path) -> None:
    """Writes the shards, part.json and columns.npz of one part into `folder`."""
    writer = shards.ShardWriter(folder)
    tally = report.Tally()
    columns: dict[str, list[dict[str, float]]] = {}
    for row in part.rows():
        if _stop is not None and _stop.is_set():
            raise RuntimeError("the other workers have stopped")
        taken = _take(row) if isinstance(row, Row) else row
        if isinstance(taken, Skipped):
            tally.skip(taken)
            continue
        writer.write(taken.ratio, taken.packed)
        columns.setdefault(taken.ratio, []).append(taken.numbers)
        tally.take(taken.row)
    writer.close()
    names = sorted({name for rows in columns.values() for numbers in rows for name in numbers})
    # A score that a row lacks is NaN.
    table: dict[str, Any] = {
        f"{ratio}/{name}": np.array([numbers.get(name, np.nan) for numbers in rows], np.float32)
        for ratio, rows in columns.items()
        for name in names
    }
    np.savez(folder / "columns.npz", **table)
    atomic.write_json(folder / "part.json", {"counts": writer.counts, "columns": names, **tally.as_dict()})


class _Taken(NamedTuple):
    """A row whose picture is whole, with what is written of it and numbers for filters."""

    row: Row
    ratio: str
    packed: bytes
    numbers: dict[str, float]


def _take(row: Row) -> _Taken | Skipped:
    try:
        image = svg.read_picture(row.image, paths.data_dir()) if isinstance(row.image, Path) else row.image
        height, width = pictures.check(image)
        packed = shards.pack({"id": plain(row.id), "image": image, "captions": dict(row.captions)})
    except pictures.BrokenPicture as error:
        return Skipped(row.id, error.kind, error.detail)
    except OSError as error:
        return Skipped(row.id, "cannot be read", str(error))
    except Exception as error:  # among millions of rows one that nobody foresaw must not stop the others
        return Skipped(row.id, "cannot be used", repr(error))
    longest = max(len(text) for texts in row.captions.values() for text in texts)
    numbers = {**row.scores, "height": height, "width": width, "caption": longest}
    return _Taken(row, scales.nearest_aspect_ratio(height, width), packed, numbers)
