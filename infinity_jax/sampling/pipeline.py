"""Prompts in, pictures out: text encoder, transformer, sampler and tokenizer behind one call."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from infinity_jax import scales
from infinity_jax.checkpoints import pretrained, trained
from infinity_jax.checkpoints.opened import open_checkpoint
from infinity_jax.config import SampleConfig, check_choice
from infinity_jax.config_files import from_dict
from infinity_jax.errors import UserError
from infinity_jax.runtime import start_up
from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.runtime.sharding import Layout, layout_of
from infinity_jax.sampling import batches, coarse_to_fine, editing, guidance, prompt_to_prompt, search
from infinity_jax.sampling.coarse_to_fine import Preview
from infinity_jax.sampling.config import SamplerConfig
from infinity_jax.sampling.editing import EditRequest
from infinity_jax.sampling.inputs import drawn_in_turn, in_batches
from infinity_jax.sampling.request import SampleRequest, listed, schedule_of
from infinity_jax.sampling.sampler import make_sampler, rounded
from infinity_jax.sampling.search import Found
from infinity_jax.sampling.search_plan import Features, Judges, Reward, SearchPlan
from infinity_jax.text.encoder import TextEncoder, padded_lengths, text_encoder_of


class InfinityPipeline:
    """A trained system, ready to draw.

    Attributes:
      model: configs and weights.
      text_encoder: reads prompts.
      settings: the sampling settings that the checkpoint recommends.
      layout: the mesh that the weights lie on; None is the default device.
    """

    def __init__(
        self,
        model: trained.TrainedModel,
        text_encoder: TextEncoder | None = None,
        layout: Layout | None = None,
    ):
        self._path: str | Path | None = None
        self.model = model if layout is None else trained.placed(model, layout)
        self.layout = layout
        self.text_encoder = text_encoder or text_encoder_of(model.text)
        self.settings = from_dict(SampleConfig, model.sample, "sample")

    @classmethod
    def from_pretrained(
        cls, path: str | Path, mesh: str | None = None, rules: str = "", upscales: bool = False
    ) -> "InfinityPipeline":
        """Loads a converted or exported folder, a training workdir, or "bundled".

        Args:
          mesh: how to use the devices, like "data=8" or "data=2,tensor=4", the first ones if there are more; None draws
            on one.
          rules: what is split over them, a preset of `sharding.ShardingRules`; "" is the least that uses the mesh.
          upscales: it is the system of an upscaler, for `UpscalePipeline`; others do not draw with such a one.

        Programs that take long to compile are kept on disk for the next process, see `start_up.keep_programs`.

        Raises:
          UserError: a part is missing, damaged, or does not belong to the others; the message names it. The mesh does
            not fit the model or needs more devices than there are.
        """
        start_up.keep_programs()
        if mesh is None and rules:
            raise UserError(f"sharding rules {rules!r} need a mesh; give one, like data={jax.device_count()}")
        opened, layout = open_checkpoint(path), None
        if opened.has_upscaler and not upscales:
            raise UserError(
                f"{path} is an upscaler, whose first scales come from a small picture; draw with infinity-jax upscale, "
                "or give the system that it was trained on"
            )
        if mesh is not None:
            shape = parse_mesh(mesh)
            layout = layout_of(shape, rules, opened.transformer_config(), jax.devices()[: shape.devices])
        # Rounded as they are read: until layers are split, a device holds one array beside what is drawn with.
        pipeline = cls(opened.model(layout, rounded=True), layout=layout)
        # What is kept is the sampler's form alone.
        pipeline.model = dataclasses.replace(pipeline.model, params=pipeline._rounded_params)
        pipeline._path = path
        if layout is not None:
            pipeline.text_encoder.place(layout)
        return pipeline

    def save_pretrained(self, path: str | Path, dtype: str = "float32") -> None:
        """Writes all that `from_pretrained` needs into one folder; weights "float32", "bfloat16" or "float16".

        What was loaded is read again, since it was rounded.
        """
        model = self.model if self._path is None else pretrained.load_on_host(self._path)
        pretrained.save_model(Path(path), model, dtype)

    def __call__(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str] | None = None,
        aspect_ratio: str = "1:1",
        budget: str | None = None,
        seeds: Sequence[int] | None = None,
        settings: SampleConfig | Sequence[SampleConfig] | None = None,
        **changes: Any,
    ) -> list[Image.Image]:
        """Draws pictures of prompts.

        Args:
          prompts, negative_prompts, aspect_ratio, budget: see `SampleRequest`.
          seeds: N numbers, one a picture; None is 0, 1, 2, ...
          settings: None takes the checkpoint's own (for the released 2B: cfg 4, tau 1, top_p 1, guidance "logits");
            N of them give each picture its own, see `stream`.
          changes: new values of fields of `SampleConfig`, like cfg=3.0 or top_p=0.9, for all pictures.
        Returns:
          N RGB pictures.
        Raises:
          UserError: a bad prompt or value, or a setting that does not exist; the message names it.
        """
        request = SampleRequest(*listed(prompts, seeds), negative_prompts, aspect_ratio, budget)
        settings = self.settings if settings is None else settings
        if isinstance(settings, SampleConfig):
            settings = settings.changed(**changes)
        else:
            settings = [own.changed(**changes) for own in settings]
        images = self.arrays(request, settings)
        return [Image.fromarray(image) for image in images]

    def arrays(
        self, request: SampleRequest, settings: SampleConfig | Sequence[SampleConfig] | None = None
    ) -> UInt8[np.ndarray, "N H W 3"]:
        """Draws pictures uint8 [N,H,W,3]; promises and errors as in `stream`."""
        return np.concatenate([images for _, images in self.stream(request, settings)])

    def stream(
        self,
        request: SampleRequest,
        settings: SampleConfig | Sequence[SampleConfig] | None = None,
        only: Sequence[int] | None = None,
    ) -> Iterator[tuple[Sequence[int], UInt8[np.ndarray, "n H W 3"]]]:
        """Draws pictures in batches and hands them out as they are drawn: which of the N, and uint8 [n,H,W,3].

        The device draws the next batch while the caller has one; at most two are in memory. The same prompt, seed,
        settings and `batch` give the same picture beside any others. Numbers may be rounded otherwise where `batch`,
        the mesh or the padded length of the text (a power of two by the longest prompt of the call) is another one,
        and then a bit that was drawn at the edge of its probability may flip.

        Args:
          settings: None takes the checkpoint's own; N of them give each picture its own cfg, tau and top_p, while what
            is compiled (what guidance mixes, unguided scales, pruning, the decoder's dtype) must be the same for all.
          only: numbers of the pictures to draw, each as among all N; None draws all.
        Raises:
          UserError: a bad prompt, setting, aspect ratio or batch; it comes before anything is drawn.
        """
        request, config, numbers = self._planned(request, settings)
        only = range(len(request.prompts)) if only is None else only
        return self._batches(request, only, make_sampler(config, self.layout), numbers)

    def probabilities(
        self, request: SampleRequest, settings: SampleConfig | None = None
    ) -> tuple[Float[np.ndarray, "N h w D"], ...]:
        """Computes how likely each bit of given pictures is 1 by their prompts, see `prompt_to_prompt`.

        Args:
          request: with `given` pictures.
        Returns:
          K arrays float32 [N,h_k,w_k,D].
        Raises:
          UserError: as of `stream`, and where tokens are no bits.
        """
        request, config, numbers = self._planned(request, settings)
        compute = prompt_to_prompt.make_probabilities(config, self.layout)
        parts = [part for _, part in self._batches(request, range(len(request.prompts)), compute, numbers)]
        return jax.tree.map(lambda *of_scale: np.concatenate(of_scale), *parts)

    def _planned(
        self, request: SampleRequest, settings: SampleConfig | Sequence[SampleConfig] | None
    ) -> tuple[SampleRequest, SamplerConfig, guidance.Numbers]:
        """Checks a request, and finds what is compiled and which numbers each picture has."""
        schedule = self._schedule(request.aspect_ratio, request.budget)
        request = request.checked()
        if self.model.config.condition == "class":
            self.text_encoder.tokens(request.texts)  # refuses unknown ones
        settings = self.settings if settings is None else settings
        each = [settings] if isinstance(settings, SampleConfig) else list(settings)
        if len(each) not in {1, len(request.prompts)}:
            raise UserError(f"got {len(request.prompts)} prompts and {len(each)} settings; give one for each")
        model, tokenizer = self.model.config, self.model.tokenizer.config
        config = SamplerConfig.of_all(model, tokenizer, schedule, each)
        config = dataclasses.replace(config, given_scales=request.given_scales, next_input=request.next_input)
        batch = self.batch_of(request) if request.batch is None else request.batch
        batches.check(batch, config, self.layout)
        numbers = guidance.numbers(each, schedule.n_scales, len(request.prompts))
        return dataclasses.replace(request, batch=batch), config, numbers

    def stream_scales(
        self,
        request: SampleRequest,
        settings: SampleConfig | None = None,
        preview_size: str = "full",
        only: Sequence[int] | None = None,
    ) -> Iterator[tuple[Sequence[int], Preview]]:
        """Draws pictures coarse to fine: after each scale which of the N, and what is drawn so far, see `Preview`.

        Args:
          preview_size: "full", or "scale": earlier scales at their own size, for a fraction of the work.
          only: see `stream`.
        Raises:
          UserError: as of `stream`, or another size.
        """
        check_choice(preview_size, coarse_to_fine.SIZES, "preview_size")
        request, config, numbers = self._planned(request, settings)
        only = range(len(request.prompts)) if only is None else only
        every = in_batches(self.text_encoder, request, only, numbers, self.layout)
        weights = self._rounded_params, self.model.tokenizer.params
        return coarse_to_fine.of_batches(config, self.layout, weights, every, preview_size)

    def edit(self, request: EditRequest, settings: SampleConfig | None = None) -> list[Image.Image]:
        """Draws parts of given pictures anew, see `editing.edit`."""
        return editing.edit(self, request, settings)

    def search(
        self,
        request: SampleRequest,
        plan: SearchPlan,
        reward: Reward,
        features: Features | None = None,
        settings: SampleConfig | None = None,
    ) -> Found:
        """Draws several candidates of each prompt, and keeps the best by a reward, see `search` and `SearchPlan`.

        Args:
          reward: (pictures uint8 [n,H,W,3], their n prompts) -> n numbers, the higher the better.
          features: pictures -> [n,C], for cuts by clusters.
          settings: None takes the checkpoint's own.
        Raises:
          UserError: as of `stream`; a plan that does not fit; a reward that fails or is not finite.
        """
        every, config, numbers = self._planned(search.candidates_of(request, plan), settings)
        system = search.System(config, self.layout, (self._rounded_params, self.model.tokenizer.params))
        every = search.whole_prompts(every, config, self.layout, plan)
        inputs = in_batches(self.text_encoder, every, range(len(every.prompts)), numbers, None)
        return search.search(system, inputs, every.prompts, plan, Judges(reward, features))

    def batch_of(self, request: SampleRequest) -> int:
        """Returns how many pictures of a request are best drawn at once: what fits their number, at most `batch`."""
        most = request.batch
        if most is None:
            most = batches.largest(self._schedule(request.aspect_ratio, request.budget), self.layout)
        return batches.fitting(len(request.prompts), most, self.layout)

    def warm_up(
        self,
        request: SampleRequest,
        settings: SampleConfig | None = None,
        pictures: Sequence[int] = batches.SIZES,
    ) -> None:
        """Compiles what requests of this kind need, by drawing so many pictures of its longest prompt.

        Args:
          request: the padded length of its longest text, whether there are negative prompts, aspect ratio and budget
            are what is compiled for.
          settings: None takes the checkpoint's own; other values of cfg, tau and top_p need no other program.
          pictures: for calls of how many.
        """
        request = request.checked()
        columns = [request.prompts, *([] if request.negative_prompts is None else [request.negative_prompts])]
        lengths = np.max([padded_lengths(self.text_encoder, texts) for texts in columns], axis=0)
        for count in pictures:
            for _ in self.stream(request.part([int(np.argmax(lengths))] * count), settings):
                pass

    def _batches(
        self, request: SampleRequest, only: Sequence[int], draw: Any, numbers: guidance.Numbers
    ) -> Iterator[tuple[Sequence[int], Any]]:
        """Runs a program on a checked request, batch by batch."""
        weights = self._rounded_params, self.model.tokenizer.params
        every = in_batches(self.text_encoder, request, only, numbers, self.layout)
        return drawn_in_turn(functools.partial(draw, *weights), every)

    def picture_size(self, aspect_ratio: str = "1:1", budget: str | None = None) -> tuple[int, int]:
        """Returns (height, width) in pixels of a request's pictures. Raises UserError for what cannot be drawn."""
        height, width = self._schedule(aspect_ratio, budget).last
        stride = self.model.tokenizer.config.transformer_stride
        return height * stride, width * stride

    @functools.cached_property
    def _rounded_params(self) -> Any:
        """Rounds the transformer's parameters as the products read them: once, not in every batch."""
        return rounded(self.model.config, self.model.params)

    def _schedule(self, aspect_ratio: str, budget: str | None) -> scales.ScaleSchedule:
        return schedule_of(self.model.tokenizer.scales, aspect_ratio, budget)
