"""How the C library hands memory back, which decides much of the speed of a training step on a CPU."""

import ctypes
import sys

# Parameters of mallopt(3) in glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the next allocation. Call it before jax is used; elsewhere it does nothing.

    By default every large array is mapped anew and its pages are cleared by the kernel one fault at a time,
    which takes longer than the arithmetic on it.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another C library, like musl
        return
    # One arena: those of other threads are mapped and returned whole, XLA's large temporary buffer at every step.
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, -1)
    mallopt(_TOP_PAD, 1 << 28)
