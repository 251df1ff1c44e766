"""What the configs have in common: names that several of them may hold, and how a wrong one is refused."""

import difflib
from collections.abc import Sequence

from infinity_jax.errors import UserError

DTYPES = ("float32", "bfloat16")
WEIGHT_DTYPES = ("float32", "bfloat16", "float16")  # of weights on disk


def check(condition: bool, message: str) -> None:
    """Raises UserError with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


def check_choice(value: str, known: Sequence[str], what: str) -> None:
    """Raises UserError, with the names that exist, unless `value` is one of those known."""
    check(value in known, f"unknown {what} {value!r}; use one of {', '.join(known)}")


def nearest(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Says which name may have been meant, for the message about an unknown one."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(known)}"
