"""How much memory the decoder may use for its maps, on the devices that are traced for."""

import dataclasses

from infinity_jax.runtime.devices import platform
from infinity_jax.tokenizer.convolution import Arithmetic

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that the decoder may use for its maps.

    Attributes:
      plain: the largest map of the pictures that are decoded at once; a picture for which it is larger, in strips.
      held: two maps that live at the same time; where they are larger, one of them is computed again.
      strip: one strip of rows.
    """

    plain: int
    held: int
    strip: int


# On a CPU strips are quicker too, because they stay in its caches: by a tenth or more at 512x512, in half the memory;
# the size of a strip matters little. What XLA makes of them for a TPU moves several times more data: there they are for
# pictures that would not fit.
CPU = Memory(plain=64 * MIB, held=768 * MIB, strip=4 * MIB)
# Products over gathered neighbours are of strips always: best of 8 to 16 rows at the sizes that take the time.
CPU_PRODUCTS = Memory(plain=0, held=768 * MIB, strip=2 * MIB)
ACCELERATOR = Memory(plain=1024 * MIB, held=1536 * MIB, strip=64 * MIB)


def memory_here(arithmetic: Arithmetic) -> Memory:
    """Chooses the memory for the devices that are traced for."""
    if arithmetic.by_products:
        return CPU_PRODUCTS
    return CPU if platform() == "cpu" else ACCELERATOR
