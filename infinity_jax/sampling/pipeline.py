"""Prompts in, pictures out: text encoder, transformer, sampler and tokenizer behind one call."""

import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from infinity_jax import scales
from infinity_jax.checkpoints import pretrained, trained
from infinity_jax.config import SampleConfig, from_dict
from infinity_jax.errors import UserError
from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.runtime.sharding import Layout, layout_of
from infinity_jax.sampling import batches, token_pruning
from infinity_jax.sampling.config import SamplerConfig
from infinity_jax.sampling.guidance import per_scale, strengths
from infinity_jax.sampling.sampler import rounded
from infinity_jax.text.encoder import TextEncoder, load_text_encoder
from infinity_jax.text.prompt import clean_prompts

_MOST_ROWS, _MOST_TOKENS = 16, 8192


class InfinityPipeline:
    """A trained system, ready to draw.

    Attributes:
      model: configs and weights.
      text_encoder: reads prompts.
      settings: the sampling settings that the checkpoint recommends.
      layout: the mesh that the weights lie on; None is the default device.
      scan_layers: see `SamplerConfig`.
    """

    def __init__(
        self,
        model: trained.TrainedModel,
        text_encoder: TextEncoder | None = None,
        layout: Layout | None = None,
        scan_layers: bool = True,
    ):
        self.scan_layers = scan_layers
        self.model = model if layout is None else trained.placed(model, layout)
        self.layout = layout
        self.text_encoder = text_encoder or load_text_encoder(
            model.text["encoder"], model.text["max_length"], model.text.get("path", "")
        )
        self.settings = from_dict(SampleConfig, model.sample, "sample")

    @classmethod
    def from_pretrained(
        cls, path: str | Path, mesh: str | None = None, rules: str = "", scan_layers: bool = True
    ) -> "InfinityPipeline":
        """From a converted or exported folder, a training workdir, or "bundled".

        Args:
          mesh: how to use the devices, like "data=8" or "data=2,tensor=4", the first ones if there are more; None draws
            on one.
          rules: what is split over them, a preset of `sharding.ShardingRules`; "" is the least that uses the mesh.
          scan_layers: False draws faster on a CPU and compiles longer; see `SamplerConfig`.
        Raises:
          UserError: a part is missing, damaged, or does not belong to the others; the message names it. The mesh does
            not fit the model or needs more devices than there are.
        """
        if mesh is None:
            if rules:
                raise UserError(
                    f"sharding rules {rules!r} need a mesh; give one, like data={jax.device_count()}"
                )
            return cls(pretrained.load_model(path), scan_layers=scan_layers)
        shape = parse_mesh(mesh)
        model = pretrained.load_on_host(path)
        layout = layout_of(shape, rules, model.config, jax.devices()[: shape.devices])
        pipeline = cls(model, layout=layout, scan_layers=scan_layers)
        pipeline.text_encoder.place(layout)
        return pipeline

    def save_pretrained(self, path: str | Path, dtype: str = "float32") -> None:
        """Writes all that `from_pretrained` needs into one folder; weights "float32", "bfloat16" or "float16"."""
        pretrained.save_model(Path(path), self.model, dtype)

    def __call__(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str] | None = None,
        aspect_ratio: str = "1:1",
        budget: str | None = None,
        cfg: float | tuple[float, ...] | None = None,
        tau: float | tuple[float, ...] | None = None,
        top_p: float | None = None,
        seeds: Sequence[int] | None = None,
        guidance: str | None = None,
        pruning: str | None = None,
        unguided_scales: Sequence[int] | None = None,
        reuse_guidance: bool | None = None,
    ) -> list[Image.Image]:
        """Pictures of prompts.

        Args:
          prompts: N texts.
          negative_prompts: N texts to steer away from; None uses the learned empty caption.
          aspect_ratio: "height:width", one of the 15 of the paper's Table 10.
          budget: pixels, "0.06M" (256x256), "0.25M", "0.60M" or "1M" (1024x1024); None is what the checkpoint was
            trained for ("1M" for the released ones).
          cfg, tau, top_p, guidance, pruning, unguided_scales, reuse_guidance: see `SampleConfig`; None takes the
            checkpoint's own (for the released 2B: 4, 1, 1, "logits", and the rest off).
          seeds: N numbers, one a picture; None is 0, 1, 2, ...
        Returns:
          N RGB pictures.
        Raises:
          UserError: a bad prompt or value; the message names it.
        """
        settings = self.settings.changed(
            cfg=cfg,
            tau=tau,
            top_p=top_p,
            guidance=guidance,
            pruning=pruning,
            unguided_scales=None if unguided_scales is None else tuple(unguided_scales),
            reuse_guidance=reuse_guidance,
        )
        if isinstance(prompts, str):
            raise UserError(
                f"prompts is one text, {prompts[:40]!r}; give a list of texts: [{prompts[:40]!r}]"
            )
        prompts = list(prompts)
        if isinstance(seeds, int):
            raise UserError(f"seeds is one number, {seeds}; give a list, one for each prompt: [{seeds}, ...]")
        seeds = range(len(prompts)) if seeds is None else seeds
        images = self.arrays(prompts, seeds, settings, negative_prompts, aspect_ratio, budget)
        return [Image.fromarray(image) for image in images]

    def arrays(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: SampleConfig | None = None,
        negative_prompts: Sequence[str] | None = None,
        aspect_ratio: str = "1:1",
        budget: str | None = None,
    ) -> UInt8[np.ndarray, "N H W 3"]:
        """Pictures uint8 [N,H,W,3] of N prompts, one seed each; arguments, promises and errors as in `stream`."""
        parts = self.stream(prompts, seeds, settings, negative_prompts, aspect_ratio, budget)
        return np.concatenate([images for _, images in parts])

    def stream(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: SampleConfig | None = None,
        negative_prompts: Sequence[str] | None = None,
        aspect_ratio: str = "1:1",
        budget: str | None = None,
        batch: int | None = None,
    ) -> Iterator[tuple[range, UInt8[np.ndarray, "n H W 3"]]]:
        """Pictures of N prompts in batches as they are drawn: which of the N, and uint8 [n,H,W,3].

        The device draws the next batch while the caller has one; at most two are in memory. The same prompt, seed,
        settings and `batch` give the same picture beside any others. Numbers may be rounded otherwise where `batch`,
        the mesh or the padded length of the text (a power of two by the longest prompt of the call) is another one,
        and then a bit that was drawn at the edge of its probability may flip.

        Args:
          prompts, negative_prompts, aspect_ratio, budget: as in `__call__`.
          seeds: one a prompt.
          settings: None takes the checkpoint's own.
          batch: pictures drawn at once; None is 16, fewer where a picture has more than 512 tokens.
        Raises:
          UserError: a bad prompt, setting, aspect ratio or batch; it comes before anything is drawn.
        """
        schedule = self._schedule(aspect_ratio, budget)
        settings = settings or self.settings
        if not prompts or len(prompts) != len(seeds):
            raise UserError(
                f"got {len(prompts)} prompts and {len(seeds)} seeds; give at least one prompt, and one seed for each"
            )
        if negative_prompts is not None and len(negative_prompts) != len(prompts):
            raise UserError(
                f"got {len(prompts)} prompts and {len(negative_prompts)} negative prompts; give one for each, or none"
            )
        # Before batches are filled up, so that messages count the prompts that were given.
        prompts = clean_prompts(prompts)
        negative_prompts = None if negative_prompts is None else clean_prompts(negative_prompts)
        for seed in seeds:
            if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
                raise UserError(f"seed {seed!r} is not a whole number from 0 to {2**32 - 1}")
        config = SamplerConfig(
            self.model.config,
            self.model.tokenizer.config,
            schedule,
            mixed="logits" if settings.guidance == "pyramid" else settings.guidance,
            feature_layers=(max(-5, -self.model.config.layers),),
            unguided_scales=settings.unguided_scales,
            reuse_guidance=settings.reuse_guidance,
            pruning=token_pruning.named(settings.pruning, schedule, self.model.config.layers),
            scan_layers=self.scan_layers,
        )
        call = batches.Call(
            prompts,
            seeds,
            negative_prompts,
            self._rows_at_once(schedule, batch),
            config,
            strengths(settings.guidance, settings.cfg, schedule.n_scales),
            per_scale(settings.tau, schedule.n_scales, "tau"),
            settings.top_p,
        )
        return batches.batches(
            call, self.text_encoder, self._rounded_params, self.model.tokenizer.params, self.layout
        )

    def picture_size(self, aspect_ratio: str = "1:1", budget: str | None = None) -> tuple[int, int]:
        """(height, width) in pixels; arguments as in `__call__`. Raises UserError for what cannot be drawn."""
        height, width = self._schedule(aspect_ratio, budget).last
        stride = self.model.tokenizer.config.transformer_stride
        return height * stride, width * stride

    @functools.cached_property
    def _rounded_params(self) -> Any:
        """The transformer's parameters as the products read them: rounded once, not in every batch."""
        return rounded(self.model.config, self.model.params)

    def _schedule(self, aspect_ratio: str, budget: str | None) -> scales.ScaleSchedule:
        own = self.model.tokenizer.scales
        if budget not in (None, own) and not {budget, own} <= scales.BUDGETS.keys():
            known = ", ".join(scales.BUDGETS) if own in scales.BUDGETS else own
            raise UserError(
                f"budget {budget!r} is not one that this checkpoint can draw; it can draw: {known}"
            )
        return scales.make_schedule(budget or own, aspect_ratio)

    def _rows_at_once(self, schedule: scales.ScaleSchedule, batch: int | None = None) -> int:
        """Pictures in one batch: `batch`, else a power of two, fewer where a picture has more tokens, for its memory.

        On a mesh at least as many as devices share a batch, and a multiple of that.
        """
        if batch is not None:
            if batch < 1:
                raise UserError(f"batch {batch} must be at least 1")
            if self.layout is not None:
                self.layout.batch(batch)
            return batch
        rows = _MOST_ROWS
        while rows > 1 and rows * schedule.length > _MOST_TOKENS:
            rows //= 2
        return rows if self.layout is None else math.lcm(rows, self.layout.batch_parts)
