"""Files and folders that appear whole or not at all: after a crash, a stop or a full disk the old content is there."""

import errno
import json
import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from infinity_jax.errors import UserError
from infinity_jax.files import locks, paths

# The disk, the user's share of it, or (the limit of the file system or of the shell) the file is full.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# ".NAME.TOKEN.unfinished"; the token is a process number, or missing, in what earlier versions left behind.
_UNFINISHED = re.compile(r"\.(.+?)(\.[0-9a-f]+)?\.unfinished")
# What this process is writing. Nothing gets its name while it is being removed, which would show half of it.
_own: set[Path] = set()
_naming = threading.RLock()


def _temporary(path: Path) -> Path:
    """Names a file beside `path` that no other process names."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.unfinished")
    _own.add(temporary)
    return temporary


def remove_own_unfinished() -> None:
    """Removes what this process is writing, before it ends without unwinding; from then on nothing gets its name."""
    if _naming.acquire(timeout=1):  # for good
        for temporary in list(_own):
            _discard(temporary)


def _discard(temporary: Path) -> None:
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    _own.discard(temporary)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what was written there takes the name `path` at the end.

    After an error `path` is as it was and the temporary file is gone. The file may be read by whom the umask says,
    whatever a library thinks of that.

    Raises:
      OSError: the file cannot be written, for example for want of space; it carries the name `path`.
    """
    temporary = _temporary(path)
    try:
        with open(temporary, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode
        with locks.hold(temporary):
            yield temporary
        with open(temporary, "rb") as file:
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        with _naming:
            os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        # A full disk is found while writing, where Python does not know the name.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        _discard(temporary)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Yields a new, empty folder beside `path` that takes the name `path` at the end; it is removed after an error.

    Raises:
      OSError: something cannot be written, or `path` is there already and is not empty.
    """
    temporary = _temporary(path)
    try:
        temporary.mkdir()
        with locks.hold(temporary):
            yield temporary
        with _naming:
            temporary.rename(path)
    finally:
        _discard(temporary)


@contextmanager
def os_errors(kind: type[Exception]) -> Iterator[None]:
    """Raises as OSError what a library raises as `kind` where a file cannot be written."""
    try:
        yield
    except kind as error:
        full = (number for number in FULL if os.strerror(number) in str(error))
        raise OSError(next(full, errno.EIO), str(error)) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all; OSError, with its name, if that cannot be done."""
    with writing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes a text as UTF-8, see `write_bytes`."""
    # Half a pair of surrogates (from a file name that is not UTF-8) is not UTF-8, but "\\udcff" is JSON.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as indented JSON, see `write_bytes`."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def remove_unfinished(paths: Iterable[Path]) -> None:
    """Removes what killed processes left beside these files or folders; what a process is writing stays."""
    names_in: dict[Path, set[str]] = {}
    for path in paths:
        names_in.setdefault(path.parent, set()).add(path.name)
    for folder, names in names_in.items():
        _remove_left(folder, names)


def clean(folder: Path) -> None:
    """Removes all that killed processes left unfinished in `folder`, which need not be there."""
    _remove_left(folder, None)


def _remove_left(folder: Path, names: set[str] | None) -> None:
    for file in folder.glob(".*.unfinished"):
        match = _UNFINISHED.fullmatch(file.name)
        if match and (names is None or match[1] in names) and not locks.is_held(file):
            with suppress(OSError):  # a folder that is only read
                shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)


def check_target(file: Path, option: str, *inputs: str | Path | None, makes_folder: bool = False) -> None:
    """Raises UserError, before any work is done, where `file` of the command line's `option` cannot be written.

    Args:
      inputs: what the command reads, see `paths.check_not_read`.
      makes_folder: its folder is made where there is none.
    """
    if not file.absolute().parent.is_dir() and not makes_folder:
        raise UserError(f"{option} {file}: its folder does not exist; make it first")
    if file.is_dir():
        raise UserError(f"{option} {file} is a folder; name a file in it")
    paths.check_not_read(file, option, *inputs)
    if file.absolute().parent.is_dir():
        _check_writable(file, f"{option} {file}")
    else:
        check_folder(file.parent, option)


def check_folder(folder: Path, option: str) -> None:
    """Raises UserError, before any work is done, where a folder cannot be made or nothing can be written into it."""
    missing, place = folder.absolute() / "file", folder.absolute()
    while not os.path.lexists(place):
        missing, place = place, place.parent
    if not place.is_dir():
        raise UserError(f"{option} {folder}: {place} is not a folder; name another one")
    _check_writable(missing, f"{option} {folder}")


def _check_writable(path: Path, what: str) -> None:
    """Raises UserError unless a file can be made beside `path` under the longest name that is used for it."""
    temporary = _temporary(path)
    try:
        temporary.touch(exist_ok=False)
        temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{what} cannot be written: {error.strerror}; name another place") from error
