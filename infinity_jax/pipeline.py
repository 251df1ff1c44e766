"""Prompts in, pictures out: text encoder, transformer, sampler and tokenizer behind one call."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from infinity_jax import pretrained, scales
from infinity_jax.config import from_dict
from infinity_jax.errors import UserError
from infinity_jax.sampling import sampler
from infinity_jax.sampling.guidance import GUIDANCE, per_scale, strengths
from infinity_jax.text.encoder import TextEncoder, load_text_encoder
from infinity_jax.text.prompt import clean_prompts

BATCH = 16


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How bits are drawn (spec section 7).

    Attributes:
      cfg: strength of guidance, one value or one a scale; 1 is none.
      tau: temperature of the bits, one value or one a scale; 0 takes the likelier value.
      top_p: a bit value with probability <= 1 - top_p is never drawn.
      guidance: "logits", "features", "pyramid" (cfg grows from 1 linearly over the scales) or "none".
    """

    cfg: float | tuple[float, ...] = 4.0
    tau: float | tuple[float, ...] = 1.0
    top_p: float = 1.0
    guidance: str = "logits"

    def __post_init__(self):
        if self.guidance not in GUIDANCE:
            raise UserError(f"unknown guidance {self.guidance!r}; use one of {', '.join(GUIDANCE)}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p} must be above 0 and at most 1")

    def changed(self, **values: Any) -> "SampleConfig":
        """The same with some values changed; None leaves one as it is, one-element tuples become numbers."""
        given = {name: value for name, value in values.items() if value is not None}
        single = {
            name: value[0] if isinstance(value, tuple) and len(value) == 1 else value
            for name, value in given.items()
        }
        return dataclasses.replace(self, **single)


class InfinityPipeline:
    """A trained system, ready to draw.

    Attributes:
      model: configs and weights.
      text_encoder: reads prompts.
      settings: the sampling settings that the checkpoint recommends.
    """

    def __init__(self, model: pretrained.TrainedModel, text_encoder: TextEncoder | None = None):
        self.model = model
        self.text_encoder = text_encoder or load_text_encoder(model.text["encoder"], model.text["max_length"])
        self.settings = from_dict(SampleConfig, model.sample, "sample")

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "InfinityPipeline":
        """From an exported folder, a training workdir, or "bundled". Raises UserError as `load_model` does."""
        return cls(pretrained.load_model(path))

    def arrays(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: SampleConfig | None = None,
        negative_prompts: Sequence[str] | None = None,
        aspect_ratio: str = "1:1",
    ) -> UInt8[np.ndarray, "N H W 3"]:
        """Pictures uint8 [N,H,W,3] of N prompts, one seed each.

        The same prompt, seed and settings give the same picture in any batch.
        Raises UserError for a bad prompt, setting or aspect ratio.
        """
        schedule = scales.make_schedule(self.model.tokenizer.scales, aspect_ratio)
        settings = settings or self.settings
        if not prompts or len(prompts) != len(seeds):
            raise UserError(
                f"got {len(prompts)} prompts and {len(seeds)} seeds; give at least one prompt, and one seed for each"
            )
        # Before batches are filled up, so that messages count the prompts that were given.
        prompts = clean_prompts(prompts)
        negative_prompts = None if negative_prompts is None else clean_prompts(negative_prompts)
        for seed in seeds:
            if not 0 <= seed < 2**32:
                raise UserError(f"seed {seed} is out of range; use 0 to {2**32 - 1}")
        images = []
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            negative = None if negative_prompts is None else negative_prompts[part]
            images.append(self._batch(prompts[part], seeds[part], settings, negative, schedule))
        return np.concatenate(images)

    def _batch(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: SampleConfig,
        negative_prompts: Sequence[str] | None,
        schedule: scales.ScaleSchedule,
    ) -> np.ndarray:
        # Always the same shapes, filled up with copies: one compilation, and a picture's rounding
        # cannot depend on how many others are drawn with it.
        missing = BATCH - len(prompts)
        model = self.model
        config = sampler.SamplerConfig(
            model.config,
            model.tokenizer.config,
            schedule,
            mixed="logits" if settings.guidance == "pyramid" else settings.guidance,
            feature_layer=max(-5, -model.config.layers),
        )
        text_BTC, mask_BT = self._text([*prompts, *[prompts[-1]] * missing])
        negative = (None, None)
        if negative_prompts is not None:
            negative = self._text([*negative_prompts, *[negative_prompts[-1]] * missing])
        inputs = sampler.SamplerInputs(
            text_BTC,
            mask_BT,
            jnp.asarray([*seeds, *[0] * missing], jnp.uint32),
            jnp.asarray(strengths(settings.guidance, settings.cfg, schedule.n_scales)),
            jnp.asarray(per_scale(settings.tau, schedule.n_scales, "tau")),
            jnp.float32(settings.top_p),
            *negative,
        )
        images = sampler.make_sampler(config)(model.params, model.tokenizer.params, inputs)
        return np.asarray(images)[: len(prompts)]

    def _text(self, prompts: Sequence[str]) -> tuple[jax.Array, jax.Array]:
        """Features [B,T,C] and mask [B,T], T always the longest possible."""
        features, mask = self.text_encoder.encode(prompts)
        missing = self.text_encoder.max_length - mask.shape[1]
        return (
            jnp.asarray(np.pad(features, ((0, 0), (0, missing), (0, 0)))),
            jnp.asarray(np.pad(mask, ((0, 0), (0, missing)))),
        )
