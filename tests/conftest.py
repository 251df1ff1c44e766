"""Before the package is imported: checks of shapes and types at run time, and a cache of compiled programs."""

import json
import os
from pathlib import Path

# The tests need no accelerator, and numbers are compared with those of a CPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test's time is compilation, and programs this small gain nothing from the optimiser of machine code.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
# A second run of the tests finds its compiled programs here.
_CACHE = Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))

import jaxtyping  # noqa: E402

# Only tests pay for these checks; production code is imported without them.
jaxtyping.install_import_hook("infinity_jax", "type_checks.check_types")

import jax.numpy as jnp  # noqa: E402
import pytest  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from infinity_jax.scales import ScaleSchedule  # noqa: E402


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder with numbers that the public release produced."""
    return Path(__file__).parent / "golden" / "release"


@pytest.fixture(scope="session")
def release_bsq(golden):
    """The release's quantiser: its arrays, its schedule, and the input features float32 [B,H,W,d]."""
    arrays = load_file(golden / "b_bsq_d16.safetensors")
    config = json.loads((golden / "b_bsq_d16.json").read_text())["config"]
    sizes = tuple((h, w) for _, h, w in config["scale_schedule"])
    return (
        arrays,
        ScaleSchedule(sizes, sizes[-1]),
        jnp.moveaxis(jnp.asarray(arrays["features"][:, :, 0]), 1, -1),
    )
