"""Drawing from logits that are changed first: other guidance than CFG, and temperatures that the logits themselves set.

The plain way to draw never has the logits of both rows (`head_bits`); these ways need them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from infinity_jax.sampling import bits, head_bits
from infinity_jax.sampling.bits import DrawSettings, LinearHead
from infinity_jax.sampling.config import SamplerConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import resize

# The highest temperature that is tried, and how often the interval is halved: as DiverseAR's.
_HOTTEST, _BISECTIONS = 8.0, 20

# (hidden states, head and cfg of `head_bits.draw_head_bits`, number of the scale, what was carried from the scale
# before) -> logits [B,N,d] after guidance, and what is carried on.
GuideLogits = Callable[
    [jax.Array, LinearHead, jax.Array, int, jax.Array | None], tuple[jax.Array, jax.Array | None]
]


@dataclasses.dataclass(frozen=True)
class LogitDraw:
    """Draws bits from guided logits: a value of `Hooks.draw_bits`.

    Attributes:
      guide: makes the logits.
      reads_one_row: where features are mixed and logits are not, both rows carry the same.
      confidence: of the first scales, see `SampleConfig.bit_confidence`.
    """

    guide: GuideLogits
    reads_one_row: bool = False
    confidence: tuple[float, ...] = ()

    @classmethod
    def of(cls, config: SamplerConfig) -> "LogitDraw":
        """Chooses by the config's options."""
        guide: GuideLogits = _plain
        if config.reuse_guidance:
            guide = ReusedGuidance(config.schedule)
        elif config.projects_guidance:
            guide = ProjectedGuidance(config.guidance_parallel, config.guidance_norm)
        return cls(guide, config.mixed == "features", config.bit_confidence)

    def __call__(
        self,
        hidden_GBNC: jax.Array,
        head: LinearHead,
        cfg_B: jax.Array,
        settings: DrawSettings,
        carried: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Draws the bits bool [B,N,d] of one scale; arguments as in `head_bits.draw_head_bits`."""
        hidden_GBNC = hidden_GBNC[:1] if self.reads_one_row else hidden_GBNC
        logits_BNd, carried = self.guide(hidden_GBNC, head, cfg_B, settings.scale, carried)
        if settings.scale < len(self.confidence):
            tau_B = warmed(logits_BNd, settings.tau_B, self.confidence[settings.scale])
            settings = dataclasses.replace(settings, tau_B=tau_B)
        return bits.draw_bits(logits_BNd, settings), carried


def _plain(
    hidden_GBNC: jax.Array, head: LinearHead, cfg_B: jax.Array, scale: int, carried: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    return head_bits.guided_logits(hidden_GBNC, head, cfg_B), carried


def _of_both_rows(
    hidden_GBNC: jax.Array, head: LinearHead, cfg_B: jax.Array
) -> tuple[Float[Array, "B N d"], Float[Array, "B N d"] | None]:
    """Computes the conditional logits, and what the caption changed: conditional minus unconditional, if both run."""
    conditional_BNd = head_bits.guided_logits(hidden_GBNC[:1], head, cfg_B)
    if len(hidden_GBNC) == 1:
        return conditional_BNd, None
    return conditional_BNd, conditional_BNd - head_bits.guided_logits(
        hidden_GBNC, head, jnp.zeros_like(cfg_B)
    )


@dataclasses.dataclass(frozen=True)
class ProjectedGuidance:
    """Guides by the caption's effect without what goes along the conditional logits: APG.

    Sadat et al., Eliminating oversaturation and artifacts of high guidance scales in diffusion models,
    arXiv 2410.02416, algorithm 1 without its momentum, which scales have no steps for. A vector is all logits of a
    picture's scale.

    Attributes:
      parallel: the share that is kept of the effect's part along the conditional logits; 1 is CFG.
      norm: the largest effect, as a root mean square over bits; 0 is no limit.
    """

    parallel: float
    norm: float

    def __call__(
        self,
        hidden_GBNC: jax.Array,
        head: LinearHead,
        cfg_B: jax.Array,
        scale: int,
        carried: jax.Array | None,
    ) -> tuple[jax.Array, None]:
        """Guides where both rows run."""
        conditional_BNd, effect_BNd = _of_both_rows(hidden_GBNC, head, cfg_B)
        if effect_BNd is None:
            return conditional_BNd, None
        if self.norm:
            rms_B11 = jnp.sqrt(jnp.square(effect_BNd).mean((1, 2), keepdims=True))
            effect_BNd *= jnp.minimum(1.0, self.norm / jnp.maximum(rms_B11, 1e-12))
        along_B11 = (effect_BNd * conditional_BNd).sum((1, 2), keepdims=True)
        along_B11 /= jnp.maximum(jnp.square(conditional_BNd).sum((1, 2), keepdims=True), 1e-12)
        effect_BNd -= (1 - self.parallel) * along_B11 * conditional_BNd
        return conditional_BNd + (cfg_B - 1)[:, None, None] * effect_BNd, None


@dataclasses.dataclass(frozen=True)
class ReusedGuidance:
    """Guides scales that run the conditional row alone by what the caption changed at the last guided scale.

    What it carries from scale to scale is that effect on each bit's logit, float32 [B,h,w,d].
    """

    schedule: ScaleSchedule

    def __call__(
        self,
        hidden_GBNC: jax.Array,
        head: LinearHead,
        cfg_B: jax.Array,
        scale: int,
        carried: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Measures the caption's effect where both rows run, and resizes the last one where they do not."""
        size = self.schedule.sizes[scale]
        conditional_BNd, effect_BNd = _of_both_rows(hidden_GBNC, head, cfg_B)
        if effect_BNd is not None:
            effect_Bhwd = effect_BNd.reshape(len(effect_BNd), *size, -1)
        else:
            assert carried is not None  # `SamplerConfig` refuses an unguided first scale
            effect_Bhwd = resize.bilinear(carried, size)
        stronger = (cfg_B - 1)[:, None, None]
        return conditional_BNd + stronger * effect_Bhwd.reshape(conditional_BNd.shape), effect_Bhwd


def warmed(
    logits_BNd: Float[Array, "B N d"], tau_B: Float[Array, " B"], confidence: float
) -> Float[Array, " B"]:
    """Raises each picture's temperature until its bits are no more certain than `confidence` on the mean.

    As DiverseAR: the mean probability of the likelier value falls with the temperature, so that halving an interval
    finds where it is met; at most 8, or eight times a tau above 1. A picture whose bits are less certain keeps tau.

    Returns:
      float32 [B].
    """

    def certainty(tau_B: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(jnp.abs(logits_BNd) / tau_B[:, None, None]).mean((1, 2))

    def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        cold_B, hot_B = ends
        middle_B = (cold_B + hot_B) / 2
        is_certain_B = certainty(middle_B) > confidence
        return jnp.where(is_certain_B, middle_B, cold_B), jnp.where(is_certain_B, hot_B, middle_B)

    cold_B = jnp.maximum(tau_B, 1e-3)  # at 0 bits are certain
    ends = cold_B, _HOTTEST * jnp.maximum(tau_B, 1.0)
    _, found_B = jax.lax.fori_loop(0, _BISECTIONS, halve, ends)
    return jnp.where(certainty(cold_B) > confidence, found_B, tau_B)
