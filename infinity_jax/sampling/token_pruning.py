"""Cached token pruning: at late scales a layer runs only some tokens and copies the rest from a coarser scale.

After FastVAR (arXiv 2503.23367), without training. As its release for Infinity does:

- Each of a layer's three sub-layers (self-attention, cross-attention, feed-forward) chooses for itself, from what goes
  into it before the norm: the tokens whose squared distance from the mean over all tokens is largest. Every row chooses
  for itself, so a picture's conditional and unconditional row may run different tokens.
- Where a token does not run, its update of the residual stream (after the gate gamma) is that of the same layer and
  sub-layer at the last scale before that ran all tokens, resized by area interpolation. The stream itself is whole.
- Chosen tokens keep their rotary positions. Later scales see keys and values of chosen tokens only.
- Some layers at both ends run all tokens. Skipped scales add no codes; the decoder gets the sum of the others.

Ours: chosen tokens stay in the order of the picture; cached updates are kept in the type of the products' operands;
the layers' numbers for other depths, and what "fastvar" means for fewer scales (`named`).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from infinity_jax.config import TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import resize
from infinity_jax.transformer.block import ChosenTokens, TokenChoice, all_tokens
from infinity_jax.transformer.kernels.storage import from_storage, to_storage

# The release: of 32 layers 3 to 27 prune; scale 9 (32x32) runs 60%, 10 (40x40) 50%, 11 and 12 are skipped.
_RELEASED_LAYERS, _RELEASED_START, _RELEASED_END = 32, 3, 28
_RELEASED = ((9, 0.6), (10, 0.5), (11, 0.0), (12, 0.0))
# One number is lost to rounding: 0.6 * 10 must not become 7 tokens.
_ROUNDING = 1e-9
# What the three sub-layers of a layer added to the residual stream, [B,N,C] each.
Updates = tuple[jax.Array, ...]
# Text, since a setting is typed after --pruning and stands in a picture's metadata; shares are not whole numbers.
FORM = "none, fastvar, or SCALE:SHARE[,...] with scales from 0, like 4:0.6,5:0.5; share 0 skips the scale"


@dataclasses.dataclass(frozen=True)
class TokenPruning:
    """Which tokens run; static, so every choice is a program of its own.

    Attributes:
      shares: (number of a scale from 0, share of its tokens that run) of the scales that do not run all tokens; share 0
        skips the scale: its bits are not drawn.
      layers: numbers of the first and the last layer that prune, both included.
    """

    shares: tuple[tuple[int, float], ...]
    layers: tuple[int, int]

    def check(self, schedule: ScaleSchedule, layers: int) -> None:
        """Raises UserError unless this pruning fits the schedule and a model of so many layers."""
        numbers = [scale for scale, _ in self.shares]
        last = schedule.n_scales - 1
        if wrong := [scale for scale in numbers if not 1 <= scale <= last]:
            known = f"this schedule has 1 to {last}" if last else "this schedule has no other"
            raise UserError(
                f"pruning: scale {wrong[0]} cannot be pruned; {known} after the first, which always runs"
            )
        if len(set(numbers)) < len(numbers):
            raise UserError(f"pruning: the scales {numbers} are not all different; give each scale one share")
        if wrong := [share for _, share in self.shares if not 0 <= share <= 1]:
            raise UserError(
                f"pruning: a share of {wrong[0]} of the tokens; use 0 (skip the scale) to 1 (all run)"
            )
        if not 0 <= self.layers[0] <= self.layers[1] < layers:
            raise UserError(
                f"pruning: layers {self.layers[0]} to {self.layers[1]} must be some of the model's 0 to {layers - 1}"
            )

    def prunes(self, scale: int) -> bool:
        """Tells whether some tokens of a scale may not run, though the scale does."""
        return dict(self.shares).get(scale, 0) > 0

    def skips(self, scale: int) -> bool:
        """Tells whether a scale is not drawn at all."""
        return dict(self.shares).get(scale, 1) == 0

    def kept(self, scale: int, tokens: int) -> int:
        """Counts how many of a scale's tokens run in a pruning layer: the share, rounded up."""
        return math.ceil(dict(self.shares).get(scale, 1) * tokens - _ROUNDING)

    def source(self, scale: int) -> int:
        """Finds the scale whose updates fill a pruned one: the last before it that runs all tokens."""
        return max(k for k in range(scale) if not self.prunes(k) and not self.skips(k))

    def is_source(self, scale: int) -> bool:
        """Tells whether a later scale is filled from this one."""
        return any(share > 0 and self.source(k) == scale for k, share in self.shares if k > scale)


ALL_TOKENS = TokenPruning((), (0, 0))  # at all scales


def named(text: str, schedule: ScaleSchedule, layers: int) -> TokenPruning | None:
    """Reads the pruning that a setting names, for a model of `layers` layers; None for "none".

    "fastvar" is the release's for the 13 scales of 1M: scales 9 and 10 (32x32 and 40x40) run 60% and 50% of their
    tokens, 11 and 12 are skipped. Schedules of fewer scales, whose last ones matter more, run 60% and 50% of their last
    two and skip none. Of 32 layers 3 to 27 prune, of others the same share at the same place.

    Raises:
      UserError: `text` is not of the form FORM, or does not fit the schedule.
    """
    if text == "none":
        return None
    at_ends = (_RELEASED_START * layers / _RELEASED_LAYERS, _RELEASED_END * layers / _RELEASED_LAYERS)
    first, end = (math.floor(x + 0.5) for x in at_ends)
    if text == "fastvar":
        last = schedule.n_scales - 1
        shares = _RELEASED if last == _RELEASED[-1][0] else ((last - 1, 0.6), (last, 0.5))
    else:
        shares = _parse(text)
    pruning = TokenPruning(shares, (first, max(first, end - 1)))
    pruning.check(schedule, layers)
    return pruning


def _parse(text: str) -> tuple[tuple[int, float], ...]:
    try:
        pairs = [pair.split(":") for pair in text.split(",")]
        return tuple((int(scale), float(share)) for scale, share in pairs)
    except ValueError as error:
        raise UserError(f"pruning {text!r} is not of the form {FORM}") from error


@dataclasses.dataclass(frozen=True)
class PrunedTokens:
    """The `tokens` hook. Where no scale has a share all layers are one part, which runs all tokens.

    Attributes:
      pruning, schedule: which tokens run, of which scales.
      layers: of the model.
      dtype: of kept updates, that of the products' operands.
    """

    pruning: TokenPruning
    schedule: ScaleSchedule
    layers: int
    dtype: str

    @property
    def pruned(self) -> range:
        """Numbers of the layers that prune."""
        first, last = self.pruning.layers
        return range(first, last + 1) if any(share > 0 for _, share in self.pruning.shares) else range(0)

    @property
    def parts(self) -> tuple[range, ...]:
        """Numbers of all layers, in the parts that run in turn: before those that prune, these, after them."""
        pruned = self.pruned
        parts = (range(pruned.start), pruned, range(pruned.stop, self.layers))
        return tuple(part for part in parts if part) if pruned else (range(self.layers),)

    def running(self, part: range, scale: int) -> int:
        """Counts the tokens of a scale that the layers of a part run."""
        tokens = self.schedule.tokens[scale]
        return self.pruning.kept(scale, tokens) if part == self.pruned else tokens

    def choose(self, part: range, scale: int, updates: Updates | None) -> TokenChoice:
        """Says which tokens a layer runs, given its updates at an earlier scale: pruned layers the most deviating."""
        if part != self.pruned or not self.pruning.prunes(scale):
            return all_tokens
        assert updates is not None  # an earlier scale runs all tokens: the first one does
        size, source = self.schedule.sizes[scale], self.schedule.sizes[self.pruning.source(scale)]
        return pivotal_tokens(self.pruning.kept(scale, math.prod(size)), size, source, updates)

    def keep(self, part: range, scale: int, updates: Updates) -> Updates | None:
        """Returns the updates of a layer, in storage form, at scales that later ones are filled from; else None."""
        if part != self.pruned or not self.pruning.is_source(scale):
            return None
        return tuple(to_storage(x.astype(self.dtype)) for x in updates)


def pivotal_tokens(
    kept: int, size: tuple[int, int], source_size: tuple[int, int], updates: Updates
) -> TokenChoice:
    """Makes the choice of the `kept` most deviating tokens, by each sub-layer for itself.

    Args:
      kept: how many, of size[0] * size[1].
      size: of the scale.
      source_size: of the scale that fills what does not run.
      updates: of this layer at that scale, in storage form.
    """

    def choose(x_BNC: jax.Array, sublayer: int) -> ChosenTokens:
        chosen_Bn = most_deviating(x_BNC, kept)

        def fill(update_BnC: jax.Array) -> jax.Array:
            source = from_storage(updates[sublayer]).astype(jnp.float32)
            source_BhwC = source.reshape(len(source), *source_size, -1)
            return restored(update_BnC, chosen_Bn, resize.area(source_BhwC, size).reshape(x_BNC.shape))

        return ChosenTokens(lambda x: rows_at(x, chosen_Bn), fill)

    return choose


def most_deviating(x_BNC: Float[Array, "B N C"], kept: int) -> Int[Array, "B n"]:
    """Finds the `kept` tokens of each row farthest from its mean token, ascending; of equals the earlier ones."""
    deviation_BN = jnp.square(x_BNC - x_BNC.mean(1, keepdims=True)).sum(-1)
    return jnp.sort(jax.lax.top_k(deviation_BN, kept)[1], -1)


def rows_at(x_BNC: jax.Array | np.ndarray, chosen_Bn: jax.Array) -> jax.Array:
    """Picks the tokens [B,n,C] at the chosen places; an x of one row [1,N,C] is shared by all."""
    x_BNC = jnp.broadcast_to(x_BNC, (len(chosen_Bn), *x_BNC.shape[1:]))
    return jax.vmap(lambda x_NC, chosen_n: x_NC.at[chosen_n].get(mode="promise_in_bounds"))(x_BNC, chosen_Bn)


def restored(
    update_BnC: Float[Array, "B n C"], chosen_Bn: Int[Array, "B n"], filling_BNC: Float[Array, "B N C"]
) -> Float[Array, "B N C"]:
    """Puts the chosen places' own updates into `filling_BNC`; places ascend."""
    # Read, not scattered: a scatter runs row after row on a CPU.
    token_N = jnp.arange(filling_BNC.shape[1], dtype=chosen_Bn.dtype)
    after_BN = jax.vmap(lambda chosen_n: jnp.searchsorted(chosen_n, token_N, side="right"))(chosen_Bn)
    place_BN = jnp.maximum(after_BN - 1, 0)
    is_chosen_BN = jnp.take_along_axis(chosen_Bn, place_BN, 1) == token_N
    return jnp.where(is_chosen_BN[..., None], rows_at(update_BnC, place_BN), filling_BNC)


def saved_flops(
    pruning: TokenPruning, config: TransformerConfig, schedule: ScaleSchedule, text_tokens: int
) -> int:
    """Counts the FLOP that an unguided picture is spared, as `flops.forward_flops` does; resizing is not subtracted."""
    saved = 0
    for pruned in (False, True):
        first, last = pruning.layers
        layers = last + 1 - first if pruned else config.layers - (last + 1 - first)
        seen = seen_unpruned = 0
        for k, tokens in enumerate(schedule.tokens):
            runs = 0 if pruning.skips(k) else pruning.kept(k, tokens) if pruned else tokens
            seen, seen_unpruned = seen + runs, seen_unpruned + tokens
            per_token = 2 * (6 * config.width**2 + 2 * config.width * config.ffn_width)
            per_token += 4 * config.width * text_tokens
            saved += layers * (tokens - runs) * per_token
            saved += layers * 4 * config.width * (tokens * seen_unpruned - runs * seen)
    skipped = sum(tokens for k, tokens in enumerate(schedule.tokens) if pruning.skips(k))
    return saved + skipped * 2 * (config.bits + config.head_logits) * config.width
