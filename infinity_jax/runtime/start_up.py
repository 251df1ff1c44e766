"""Compiled programs are kept on disk: a command that starts again loads in a second what took it a minute."""

import ctypes
import hashlib
import logging as python_logging
import os
import platform
import sys
import tempfile
from pathlib import Path

from absl import flags, logging

from infinity_jax.errors import printable
from infinity_jax.files import paths

_MOST_BYTES = 2 << 30
# What libraries in C++ write to stderr on their own. XLA counts a compilation of two minutes as an error ("Very slow
# compile?"); what is really wrong is raised besides. libtpu tells of the devices that a machine lacks.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3"}


def quiet_libraries() -> None:
    """Keeps libraries in C++ off the terminal; call it before jax is imported. Levels that a user set stay."""
    for name, level in QUIET.items():
        os.environ.setdefault(name, level)


def keep_programs() -> None:
    """Lets jax keep programs that took a second to compile in `data_dir()/compiled`, at most 2 GiB of them.

    Whoever set JAX_COMPILATION_CACHE_DIR (empty, it is off) or jax.config's jax_compilation_cache_dir keeps their own.
    A folder that cannot be written is said in the log, and nothing is kept.
    """
    jax = sys.modules.get("jax")  # nothing here needs it, and it takes seconds to import
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or (jax and jax.config.jax_compilation_cache_dir):
        return
    folder = paths.data_dir() / "compiled" / _machine()
    try:
        # Whoever can write there can run code here.
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove_unfinished(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        logging.warning(
            "compiled programs cannot be kept in %s (%s), so each start compiles again; make it writable, or set "
            "INFINITY_DATA to another folder",
            folder,
            error.strerror,
        )
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_MOST_BYTES))
    if jax:  # it has read the environment already
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", int(os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"]))


def _machine() -> str:
    """Names this kind of processor and this user: code for a CPU may use instructions that another one lacks."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = [line for line in lines if line.startswith(("flags", "Features"))][:1]
    except OSError:  # not Linux
        features = [platform.processor()]
    owner = os.getuid() if hasattr(os, "getuid") else ""
    parts = [platform.system(), platform.machine(), *features, str(owner)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _remove_unfinished(folder: Path) -> None:
    """Removes programs that a full disk or a kill left half written.

    jax writes a program and then the time of its use; without the latter it neither replaces the program nor any more
    keeps others.
    """
    for program in folder.glob("*-cache"):
        if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
            program.unlink(missing_ok=True)


# Parameters of mallopt(3) in glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
# For madvise(2), from Linux's mman-common.h.
_MADV_HUGEPAGE = 14


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next allocation. Call it before jax is used; elsewhere it does nothing.

    By default every large array is mapped anew and its pages are cleared by the kernel one fault at a time,
    which takes longer than the arithmetic on it. With jax 0.12 too: `tanh(x) * 2 + 1`, `tanh(x @ w) @ w.T` of float32
    [4096, 4096] and [4096, 256] fault 10 pages instead of 33,100, in a fifth less processor time (getrusage, 2 cores).
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    mallopt = getattr(libc, "mallopt", None)
    if mallopt is None:  # another C library, like musl
        return
    # One arena: those of other threads are mapped and returned whole, XLA's large temporary buffer at every step.
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)
    mallopt(_TOP_PAD, 1 << 28)
    _ask_for_huge_pages(libc)


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Asks for large pages for the heap to come, where the kernel gives them: fewer faults and address look-ups.

    Addresses are reserved and freed again. They stay with the heap, and memory is only taken where it is used.
    """
    page, half = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES") // 2
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.free.argtypes = [ctypes.c_void_p]
    start = libc.malloc(half * page)
    if start is None:  # the process may not have so many addresses
        return
    first_page = -(-start // page) * page
    # Refused by a kernel without huge pages: no harm.
    libc.madvise(first_page, (half - 1) * page, _MADV_HUGEPAGE)
    libc.free(start)


_PACKAGE = str(Path(__file__).parents[1])


def _wanted(record: python_logging.LogRecord) -> bool:
    if "/orbax/" in record.pathname:
        return False  # its failures reach us as exceptions, which checkpoint.py explains
    return record.pathname.startswith(_PACKAGE) or record.levelno >= python_logging.WARNING


class _Printable(python_logging.Formatter):
    """Escapes what would steer the terminal: names of files, captions and answers of servers come from anybody."""

    def format(self, record: python_logging.LogRecord) -> str:
        return printable(super().format(record))


def log_to_stderr() -> None:
    """Shows our information lines and everyone's warnings on stderr, each as its message alone."""
    flags.FLAGS.mark_as_parsed()  # absl warns about itself until its flags are read, which we do not use
    handler = logging.get_absl_handler()
    handler.addFilter(_wanted)
    handler.setFormatter(_Printable("%(message)s"))
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold(logging.INFO)
