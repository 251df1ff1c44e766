"""How values of low precision are kept in arrays that a loop slices or writes.

XLA:CPU has no bfloat16 of its own in such places: it would widen the whole array to float32, slice or write it, and
round it again. As the same 16 bits in an unsigned integer they stay as they are. Elsewhere nothing is changed.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from infinity_jax.runtime.devices import platform


def to_storage(x: jax.Array | np.ndarray) -> Any:
    """Brings x into the form in which it is kept: bfloat16 as its bits in uint16 on a CPU. NumPy's stays NumPy's."""
    if x.dtype == jnp.bfloat16 and platform() == "cpu":
        if isinstance(x, np.ndarray):
            return x.view(np.uint16)
        return lax.bitcast_convert_type(x, jnp.uint16)
    return x


def from_storage(x: jax.Array | np.ndarray) -> Any:
    """Restores the value from storage form."""
    return lax.bitcast_convert_type(x, jnp.bfloat16) if x.dtype == jnp.uint16 else x
