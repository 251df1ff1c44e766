"""Before the package is imported: checks of shapes and types at run time, and a cache of compiled programs."""

import os
from pathlib import Path

# The tests need no accelerator, and numbers are compared with those of a CPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A second run of the tests finds its compiled programs here.
_CACHE = Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))

import jaxtyping  # noqa: E402

# Only tests pay for these checks; production code is imported without them.
jaxtyping.install_import_hook("infinity_jax", "beartype.beartype")
