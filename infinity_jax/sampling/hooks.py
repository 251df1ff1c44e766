"""Where an option acts in the sampler: each behind one hook, made once from a `SamplerConfig`.

| hook             | plain sampling                           | options                                          |
|------------------|------------------------------------------|--------------------------------------------------|
| `rows_of_scale`  | both rows of a picture run at all scales | unguided scales run the conditional row alone    |
| `tokens`         | all layers run all tokens                | pruning                                          |
| `guide_features` | leaves the residual stream as it is      | guidance on the output of layers                 |
| `draw_bits`      | guidance on logits, within the head      | guidance on features alone; reused or projected  |
|                  |                                          | guidance; bit confidence; mixed codes            |

A new option is a new value of a hook and leaves `sampler.py` as it is; a preset for speed names options that exist.
Bits that are given instead of drawn (editing, upscaling) take the drawn ones' place after the hooks, see `given.py`.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from infinity_jax.sampling import guidance, head_bits, head_index
from infinity_jax.sampling.bits import DrawSettings, LinearHead
from infinity_jax.sampling.config import SamplerConfig
from infinity_jax.sampling.guidance import Rows
from infinity_jax.sampling.logits import LogitDraw
from infinity_jax.sampling.token_pruning import ALL_TOKENS, PrunedTokens

# (residual stream float32 [N,L,C], number of the layer just run (traced where layers are scanned), rows, cfg [B]) ->
# the stream.
GuideFeatures = Callable[[jax.Array, jax.Array | int, Rows, jax.Array], jax.Array]
# (arguments of `head_bits.draw_head_bits`, what this hook handed on at the scale before) -> bits bool [B,N,D], and what
# it hands to the next scale.
DrawBits = Callable[
    [jax.Array, LinearHead, jax.Array, DrawSettings, jax.Array | None], tuple[jax.Array, jax.Array | None]
]


@dataclasses.dataclass(frozen=True)
class Hooks:
    """Where options act; see the table above.

    Attributes:
      rows_of_scale: from the number of a scale to the rows that run at it.
      tokens: the parts that the layers run in, the tokens that each part runs, and which updates it keeps.
      guide_features: changes the residual stream after each layer.
      draw_bits: turns the last block's output into bits.
    """

    rows_of_scale: Callable[[int], Rows]
    tokens: PrunedTokens
    guide_features: GuideFeatures
    draw_bits: DrawBits


@functools.lru_cache(maxsize=32)
def hooks_of(config: SamplerConfig) -> Hooks:
    """Chooses the hooks for the options of a config."""
    model = config.model
    return Hooks(
        config.rows_of_scale,
        PrunedTokens(config.pruning or ALL_TOKENS, config.schedule, model.layers, model.compute_dtype),
        GuidedFeatures(tuple(layer % model.layers for layer in config.feature_layers))
        if config.mixes_features
        else _leave_features,
        _draw_bits_of(config),
    )


def _draw_bits_of(config: SamplerConfig) -> DrawBits:
    if config.needs_logits:
        return LogitDraw.of(config)
    draw = head_bits.draw_head_bits
    if config.smooth:
        draw = head_index.SmoothDraw(config.top_k, config.schedule.n_scales)
    elif config.model.head == "index":
        draw = head_index.IndexDraw(config.top_k, as_bits=config.model.codes == 0)
    return functools.partial(_draw_bits, draw, config.mixed != "features")


def _leave_features(x_NLC: jax.Array, layer: jax.Array | int, rows: Rows, cfg_B: jax.Array) -> jax.Array:
    return x_NLC


def _draw_bits(
    draw: Callable[..., jax.Array],
    mixes_logits: bool,
    hidden_GBNC: jax.Array,
    head: LinearHead,
    cfg_B: jax.Array,
    settings: DrawSettings,
    carried: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None]:
    # Where features alone are mixed both rows carry the same stream; the conditional one is read.
    return draw(hidden_GBNC if mixes_logits else hidden_GBNC[:1], head, cfg_B, settings), None


@dataclasses.dataclass(frozen=True)
class GuidedFeatures:
    """Mixes the conditional and the unconditional output of some layers, by number; both rows go on with the mix."""

    layers: tuple[int, ...]

    def __call__(self, x_NLC: jax.Array, layer: jax.Array | int, rows: Rows, cfg_B: jax.Array) -> jax.Array:
        """Returns the mix after the chosen layers; other layers and scales that run one row keep their stream."""
        if rows.running == 1:
            return x_NLC
        conditional, unconditional = guidance.separate(x_NLC, 2)
        mixed = guidance.mix(conditional, unconditional, cfg_B[:, None, None])
        # A scale with cfg 1 leaves the unconditional row as it is, for the sake of later scales.
        is_mixed_B = jnp.any(layer == jnp.array(self.layers)) & (cfg_B != 1)
        is_mixed_N, mixed_NLC = rows.repeat(is_mixed_B), rows.repeat(mixed)
        return jnp.where(is_mixed_N[:, None, None], mixed_NLC, x_NLC)
