"""What a sampler is compiled for, and what each of its calls is given."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax

from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.runtime.sharding import Layout, put
from infinity_jax.sampling.token_pruning import TokenPruning, pivotal_tokens
from infinity_jax.scales import ScaleSchedule
from infinity_jax.transformer.block import TokenChoice, all_tokens

MIXED = ("logits", "features", "both", "none")


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """What is compiled; everything else is an argument, so that a new value does not compile again.

    Attributes:
      model, tokenizer: what draws.
      schedule: the transformer's.
      mixed: where the pictures with and without caption are mixed: "logits", "features", "both", or "none".
      feature_layers: the layers whose output is mixed; negative numbers count from the end.
      unguided_scales: numbers of scales (from 0) that run the pictures with caption alone, at half the cost. Later
        scales without caption then look at what those with caption have cached.
      reuse_guidance: at unguided scales, guide by what the caption changed at the last guided scale, resized.
      pruning: which tokens late scales run; None runs all.
      scan_layers: one compiled block, so that the program does not grow with depth, or one per layer, which a CPU runs
        faster (it copies a scanned block's weights at every scale) and which takes longer to compile.
    """

    model: TransformerConfig
    tokenizer: TokenizerConfig
    schedule: ScaleSchedule
    mixed: str = "logits"
    feature_layers: tuple[int, ...] = (-5,)
    unguided_scales: tuple[int, ...] = ()
    reuse_guidance: bool = False
    pruning: TokenPruning | None = None
    scan_layers: bool = True

    def __post_init__(self):
        if self.mixed not in MIXED:
            raise UserError(f"unknown place of guidance {self.mixed!r}; use one of {', '.join(MIXED)}")
        if self.tokenizer.transformer_bits != self.model.bits:
            raise UserError(
                f"the tokenizer gives {self.tokenizer.transformer_bits} bits a token, "
                f"the transformer has {self.model.bits}; they must be trained together"
            )
        self.model.check_schedule(self.schedule)
        n = self.model.layers
        named = self.feature_layers and all(-n <= layer < n for layer in self.feature_layers)
        if self.mixes_features and not named:
            raise UserError(f"feature_layers {self.feature_layers} must name some of the model's {n} layers")
        self._check_unguided()
        if self.pruning is not None:
            self.pruning.check(self.schedule, n)

    def _check_unguided(self) -> None:
        if wrong := [k for k in self.unguided_scales if not 0 <= k < self.schedule.n_scales]:
            raise UserError(
                f"unguided_scales: there is no scale {wrong[0]}; this schedule has 0 to {self.schedule.n_scales - 1}"
            )
        if self.reuse_guidance and (self.mixed != "logits" or not self.unguided_scales):
            raise UserError(
                "reuse_guidance needs guidance on logits and some unguided_scales; "
                f"got mixed={self.mixed!r} and unguided_scales={self.unguided_scales}"
            )
        if self.reuse_guidance and self.model.head != "bits":
            raise UserError(
                f"reuse_guidance needs a transformer with head 'bits'; this one's is {self.model.head!r}: leave it off"
            )
        if self.reuse_guidance and 0 in self.unguided_scales:
            raise UserError("reuse_guidance: scale 0 has nothing to reuse; leave it out of unguided_scales")

    @property
    def mixes_features(self) -> bool:
        """Whether the output of layers is mixed."""
        return self.mixed in ("features", "both")

    @property
    def halves(self) -> int:
        """Rows of a picture: 2 with guidance (with caption, then without), else 1."""
        return 1 if self.mixed == "none" else 2

    def guided(self, scale: int) -> bool:
        """Whether a scale runs both halves."""
        return self.halves == 2 and scale not in self.unguided_scales

    @property
    def drawn_scales(self) -> tuple[int, ...]:
        """Numbers of the scales that are drawn."""
        every = range(self.schedule.n_scales)
        return tuple(k for k in every if self.pruning is None or not self.pruning.skips(k))

    def prunes(self, scale: int) -> bool:
        """Whether pruning layers run only some tokens of a scale."""
        return self.pruning is not None and self.pruning.prunes(scale)

    def fills(self, scale: int) -> bool:
        """Whether pruning layers keep their updates at a scale for later ones."""
        return self.pruning is not None and self.pruning.is_source(scale)

    @property
    def pruning_layers(self) -> range:
        """Numbers of the layers that prune."""
        if self.pruning is None or not any(map(self.prunes, self.drawn_scales)):
            return range(0)
        first, last = self.pruning.layers
        return range(first, last + 1)

    @property
    def layer_parts(self) -> tuple[range, ...]:
        """All layers in order, in parts that prune or do not."""
        some, n = self.pruning_layers, self.model.layers
        parts = (range(some.start), some, range(some.stop, n)) if some else (range(n),)
        return tuple(part for part in parts if part)

    def token_choice(self, scale: int, updates: Sequence[jax.Array] | None) -> TokenChoice:
        """Which tokens a layer runs, given its updates at the scale that fills this one; None runs all."""
        if self.pruning is None or updates is None:
            return all_tokens
        size, source = self.schedule.sizes[scale], self.schedule.sizes[self.pruning.source(scale)]
        return pivotal_tokens(self.pruning.kept(scale, math.prod(size)), size, source, updates)


class SamplerInputs(NamedTuple):
    """Arguments of one batch of B pictures.

    Attributes:
      text_BTC: float32 features of the prompts; mask_BT: bool, their tokens.
      negative_BTC, negative_mask_BT: features to steer away from; None = the learned empty caption.
      seeds_B: uint32, one per picture.
      cfg_K, tau_K: float32, guidance and temperature of each scale.
      top_p: float32 scalar.
    """

    text_BTC: jax.Array
    mask_BT: jax.Array
    seeds_B: jax.Array
    cfg_K: jax.Array
    tau_K: jax.Array
    top_p: jax.Array
    negative_BTC: jax.Array | None = None
    negative_mask_BT: jax.Array | None = None


def placed(inputs: SamplerInputs, layout: Layout) -> SamplerInputs:
    """The inputs laid out over a mesh: what belongs to one picture with its share of the batch, the rest everywhere."""
    share = layout.batch(len(inputs.seeds_B))
    of_all = ("cfg_K", "tau_K", "top_p")
    given = {name: x for name, x in inputs._asdict().items() if x is not None}
    return inputs._replace(
        **{name: put(x, layout.replicated if name in of_all else share) for name, x in given.items()}
    )
