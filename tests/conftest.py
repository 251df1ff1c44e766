"""Before the package is imported: checks of shapes and types at run time, and a cache of compiled programs."""

import collections
import ctypes
import gc
import os
from pathlib import Path

# The tests need no accelerator, and numbers are compared with those of a CPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What libtpu writes as a process ends has no place under the summary of the tests; see `start_up.QUIET`.
os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
# Most of a test's time is compilation, and programs this small gain nothing from the optimiser of machine code.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
# A second run of the tests finds its compiled programs here.
_CACHE = Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))

# Programs that tests start find the helpers and this checkout.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])

import helpers.type_checks  # noqa: E402, F401
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# Only tests pay for these checks; production code is imported without them. Tests that take long would take a sixth
# longer, and `make test` runs those without.
if os.environ.get("INFINITY_CHECK_TYPES", "1") == "1":
    jaxtyping.install_import_hook("infinity_jax", "helpers.type_checks.check_types")


def pytest_addoption(parser):
    parser.addoption(
        "--golden",
        type=Path,
        metavar="DIR",
        default=Path(__file__).parent / "golden" / "release",
        help="folder with numbers that the public release produced (default: the subset in tests/golden/release)",
    )


@pytest.fixture(scope="module", autouse=True)
def environment_put_back():
    """Undoes what a command changed in the environment, for the processes that later tests start.

    `infinity-jax compile` switches the cache of compiled programs off.
    """
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module", autouse=True)
def free_compiled_programs():
    """Frees the programs that a module's tests compiled: few are needed again, and all together take some GiB."""
    yield
    jax.clear_caches()
    gc.collect()
    # glibc keeps what is freed in small pieces, which programs are; elsewhere there is no such function.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def pytest_collection_modifyitems(items):
    """Where there is nothing to go through (a golden folder without a kind of file) there is no test.

    Files with many tests that take long come first, so that no worker is left with one of them at the end.
    """
    items[:] = [item for item in items if not item.name.endswith("[NOTSET]")]
    long = collections.Counter(item.path for item in items if item.get_closest_marker("long"))
    items.sort(key=lambda item: -long[item.path])
