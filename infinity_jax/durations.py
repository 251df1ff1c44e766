"""Durations in any unit: 500, "500 steps", "10%", "2 epochs"."""

import re

from infinity_jax.errors import UserError


def in_steps(duration: int | str, *, steps: int | None, batch_size: int, examples: int) -> int:
    """A duration in training steps, rounded to the nearest, at least 1 unless it is 0.

    Args:
      duration: a number of steps, or text: "500", "500 steps", "10%" (of the run), "2 epochs", "1000 examples".
      steps: length of the run; None while that itself is being read, so that "%" is refused.
      batch_size: examples a step.
      examples: examples an epoch.
    Raises:
      UserError: text of another form, or "%" without `steps`.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(|steps?|%|epochs?|examples?)\s*", str(duration))
    if not match or (match[2] == "%" and steps is None):
        raise UserError(
            f"duration {duration!r} is not understood; write it like 500, '500 steps', '2 epochs', '1000 examples'"
            + ("" if steps is None else " or '10%' of the run")
        )
    unit = match[2].rstrip("s")
    one = {
        "": 1.0,
        "step": 1.0,
        "%": (steps or 0) / 100,
        "epoch": examples / batch_size,
        "example": 1 / batch_size,
    }
    number = float(match[1])
    return max(1, round(number * one[unit])) if number else 0
