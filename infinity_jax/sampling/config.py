"""What a sampler is compiled for, and what each of its calls is given."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jaxtyping import PyTree

from infinity_jax.config import SampleConfig, TokenizerConfig, TransformerConfig, check_choice
from infinity_jax.errors import UserError
from infinity_jax.runtime.sharding import Layout, put
from infinity_jax.sampling.given import Given
from infinity_jax.sampling.guidance import Rows
from infinity_jax.sampling.token_pruning import TokenPruning, named
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer.bsq import BinaryQuantizer
from infinity_jax.tokenizer.model import quantizer_of
from infinity_jax.tokenizer.pyramid import Quantizer

MIXED = ("logits", "features", "both", "none")


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """What is compiled; everything else is an argument, so that a new value does not compile again.

    Attributes:
      model, tokenizer: what draws.
      schedule: the transformer's.
      mixed: where conditional and unconditional rows are mixed: "logits", "features", "both", or "none".
      feature_layers: the layers whose output is mixed; negative numbers count from the end.
      unguided_scales: numbers of scales (from 0) that run the conditional row alone, at half the cost. Unconditional
        rows of later scales then look at what the conditional ones have cached.
      reuse_guidance: at unguided scales, guide by what the caption changed at the last guided scale, resized.
      guidance_parallel, guidance_norm: of `logits.ProjectedGuidance`; 1 and 0 are CFG.
      bit_confidence: of the first scales: how certain bits may be on the mean, see `logits.warmed`.
      pruning: which tokens late scales run; None runs all.
      decoder_dtype: what the tokenizer's decoder multiplies, see `Tokenizer.decode`.
      top_k: of tokens that are indices: only so many of the likeliest are drawn; 0 is all.
      smooth: mix codes instead of drawing one, see `head_index.SmoothDraw`.
      given_scales: so many of the first scales are given whole: they have neither head nor draw.
      next_input: how the running sum becomes the next input, see `BinaryQuantizer.input_resize`.
    """

    model: TransformerConfig
    tokenizer: TokenizerConfig
    schedule: ScaleSchedule
    mixed: str = "logits"
    feature_layers: tuple[int, ...] = (-5,)
    unguided_scales: tuple[int, ...] = ()
    reuse_guidance: bool = False
    guidance_parallel: float = 1.0
    guidance_norm: float = 0.0
    bit_confidence: tuple[float, ...] = ()
    pruning: TokenPruning | None = None
    decoder_dtype: str = "bfloat16"
    top_k: int = 0
    smooth: bool = False
    given_scales: int = 0
    next_input: str = "bilinear"

    @classmethod
    def from_settings(
        cls,
        model: TransformerConfig,
        tokenizer: TokenizerConfig,
        schedule: ScaleSchedule,
        settings: SampleConfig,
    ) -> "SamplerConfig":
        """Picks what is compiled from sampling settings; raises UserError where they do not fit model or schedule."""
        return cls(
            model,
            tokenizer,
            schedule,
            mixed="logits" if settings.guidance == "pyramid" else settings.guidance,
            feature_layers=(max(-5, -model.layers),),
            unguided_scales=settings.unguided_scales,
            reuse_guidance=settings.reuse_guidance,
            guidance_parallel=settings.guidance_parallel,
            guidance_norm=settings.guidance_norm,
            bit_confidence=settings.bit_confidence,
            pruning=named(settings.pruning, schedule, model.layers),
            decoder_dtype=settings.decoder_dtype,
            top_k=settings.top_k,
            smooth=settings.smooth,
        )

    @classmethod
    def of_all(
        cls,
        model: TransformerConfig,
        tokenizer: TokenizerConfig,
        schedule: ScaleSchedule,
        each: Sequence[SampleConfig],
    ) -> "SamplerConfig":
        """Picks what pictures that are drawn together share; raises UserError where they need several programs."""
        config, *others = dict.fromkeys(cls.from_settings(model, tokenizer, schedule, own) for own in each)
        if others:
            raise UserError(
                "pictures that are drawn together can differ in cfg, tau and top_p alone; these settings differ in "
                f"more and need {1 + len(others)} programs: call once for each"
            )
        return config

    def __post_init__(self):
        check_choice(self.mixed, MIXED, "place of guidance")
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
        if (self.top_k or self.smooth) and self.model.head != "index":
            raise UserError(
                f"top_k {self.top_k} and smooth {self.smooth} are for tokens drawn as indices; this transformer draws "
                "bits"
            )
        if self.smooth and not self.model.codes:
            raise UserError("smooth mixes codes of a codebook; this tokenizer has none, leave it off")
        self._check_unguided()
        self._check_logits()
        if self.pruning is not None and self.model.condition != "text":
            raise UserError(
                "pruning is for models of captions, whose blocks have three sub-layers; leave it off"
            )
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
        if self.reuse_guidance and self.given_scales in self.unguided_scales:
            first = self.given_scales
            raise UserError(
                f"reuse_guidance: scale {first} has nothing to reuse; leave it out of unguided_scales"
            )

    def _check_logits(self) -> None:
        changes = {
            "reuse_guidance": self.reuse_guidance,
            "guidance_parallel and guidance_norm": self.projects_guidance,
            "bit_confidence": bool(self.bit_confidence),
        }
        named = [name for name, is_on in changes.items() if is_on]
        if named and self.model.head != "bits":
            raise UserError(
                f"{named[0]} needs a transformer with head 'bits'; this one's is {self.model.head!r}: leave it off"
            )
        if self.projects_guidance and self.mixed not in ("logits", "both"):
            raise UserError(
                f"guidance_parallel and guidance_norm change guidance on logits; got mixed={self.mixed!r}: leave "
                "them off"
            )
        if self.projects_guidance and self.reuse_guidance:
            raise UserError(
                "guidance_parallel and guidance_norm do not go with reuse_guidance; leave one off"
            )
        if len(self.bit_confidence) > self.schedule.n_scales:
            raise UserError(
                f"bit_confidence has {len(self.bit_confidence)} values; give at most one for each of the "
                f"{self.schedule.n_scales} scales"
            )

    def quantizer(self, tokenizer_params: PyTree) -> Quantizer:
        """Makes the tokenizer's quantiser; of bits it needs no parameters, which may be None."""
        own = quantizer_of(self.tokenizer, tokenizer_params, self.schedule.n_scales)
        if not isinstance(own, BinaryQuantizer):
            return own
        return BinaryQuantizer(own.name, own.scaled_gradient, self.next_input)

    @property
    def mixes_features(self) -> bool:
        """Whether the output of layers is mixed."""
        return self.mixed in ("features", "both")

    @property
    def projects_guidance(self) -> bool:
        """Whether guidance is not CFG, see `logits.ProjectedGuidance`."""
        return self.guidance_parallel != 1 or self.guidance_norm > 0

    @property
    def needs_logits(self) -> bool:
        """Whether logits are changed before bits are drawn, see `logits.LogitDraw`."""
        return self.reuse_guidance or self.projects_guidance or bool(self.bit_confidence)

    @property
    def rows(self) -> int:
        """Rows of a picture: 2 with guidance (conditional, then unconditional), else 1."""
        return 1 if self.mixed == "none" else 2

    def rows_of_scale(self, scale: int) -> Rows:
        """Tells which rows of a picture run at a scale."""
        return Rows(self.rows, 1 if scale in self.unguided_scales else self.rows)

    @property
    def drawn_scales(self) -> tuple[int, ...]:
        """Numbers of the scales that are drawn."""
        every = range(self.schedule.n_scales)
        return tuple(k for k in every if self.pruning is None or not self.pruning.skips(k))


class SamplerInputs(NamedTuple):
    """Arguments of one batch of B pictures.

    Attributes:
      text_BTC: float32 features of the prompts; mask_BT: bool, their tokens.
      negative_BTC, negative_mask_BT: features to steer away from; None = the learned empty caption.
      seeds_B: uint32, one per picture.
      cfg_BK, tau_BK: float32, guidance and temperature of each picture at each scale.
      top_p_B: float32, of each picture.
      given: the symbols that are not drawn, and where; None draws all.
    """

    text_BTC: jax.Array
    mask_BT: jax.Array
    seeds_B: jax.Array
    cfg_BK: jax.Array
    tau_BK: jax.Array
    top_p_B: jax.Array
    negative_BTC: jax.Array | None = None
    negative_mask_BT: jax.Array | None = None
    given: Given | None = None


def placed(inputs: SamplerInputs, layout: Layout) -> SamplerInputs:
    """Shards the batch over a mesh: what belongs to a picture lies where its picture is drawn."""
    share = layout.batch(len(inputs.seeds_B))
    return jax.tree.map(lambda x: put(x, share), inputs)
