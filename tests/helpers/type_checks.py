"""Run-time checks of annotations, which conftest.py puts on every function of the package."""

from collections.abc import Callable

import beartype
from beartype.roar import BeartypeDecorHintPep3119Exception


def check_types(function: Callable) -> Callable:
    """The function with its arguments and result checked against its annotations, shapes of arrays included.

    A Protocol that is not made for isinstance cannot be checked; a function that names one is left as it is.
    """
    try:
        return beartype.beartype(function)
    except BeartypeDecorHintPep3119Exception:
        return function
