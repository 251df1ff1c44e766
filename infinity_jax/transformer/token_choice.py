"""Which tokens of a scale a sub-layer runs: all of them, unless the sampler prunes (`sampling/token_pruning.py`)."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax

SELF_ATTENTION, CROSS_ATTENTION, FEED_FORWARD = range(3)  # the sub-layers of a block, in order


class ChosenTokens(NamedTuple):
    """The n of N tokens that one sub-layer runs.

    Attributes:
      take: picks their rows [B, n, ...] from an array [B, N, ...], or from [1, N, ...] that all pictures share.
      fill: makes the update [B, N, C] of all tokens from that [B, n, C] of those that ran.
    """

    take: Callable[[Any], Any]
    fill: Callable[[jax.Array], jax.Array]


class TokenChoice(Protocol):
    """Chooses the tokens of one sub-layer, when the block comes to it."""

    def __call__(self, x_BNC: jax.Array, sublayer: int, /) -> ChosenTokens:
        """Reads the residual stream float32 [B, N, C] before the sub-layer, and the sub-layer's number."""
        ...


def all_tokens(x_BNC: jax.Array, sublayer: int) -> ChosenTokens:
    """Chooses every token."""
    return ChosenTokens(lambda x: x, lambda update_BNC: update_BNC)
