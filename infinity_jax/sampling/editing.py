"""Editing: a given picture, of which a part is drawn anew from a prompt (docs/guides/editing.md).

In-painting and out-painting by a mask, variations by keeping the first scales; what is kept is given to the sampler as
`given.Given`, and quantised anew there against what was drawn.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from infinity_jax import scales
from infinity_jax.checkpoints.trained import TrainedModel
from infinity_jax.config import SampleConfig, TokenizerConfig
from infinity_jax.data import pictures as decoding
from infinity_jax.errors import UserError
from infinity_jax.files.pictures import MOST_PIXELS
from infinity_jax.sampling.given import Given
from infinity_jax.sampling.masks import kept_by_scale, paste, white
from infinity_jax.sampling.request import SampleRequest
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import pyramid
from infinity_jax.tokenizer.model import Tokenizer, through_bits

MOST_FEATHER = 64
# How many times as oblong as the nearest aspect ratio a picture may be.
_OBLONG = 2.0


@dataclasses.dataclass(frozen=True)
class EditRequest:
    """Which parts of N pictures are drawn anew, and of what.

    Attributes:
      pictures: RGB, of any size.
      prompts: what each shall show.
      masks: a picture as large as each, white where it is drawn anew; None draws all of them anew.
      strength: share of the scales that are drawn anew, the last ones; the first ones, which hold layout and colours,
        are kept. 1 keeps none, 0 all.
      seeds: one a picture; None is 0, 1, 2, ...
      negative_prompts: texts to steer away from; None uses the learned empty caption.
      paste: what a mask keeps is put back as it was, at the picture's own size, and blended with what was drawn within
        the mask's edge. Without it pictures come out as they are drawn.
      fixed: kept bits stay those of the given picture instead of being quantised anew at every scale.
      feather: over so many tokens of the last scale what a mask keeps passes into what is drawn, in codes; 0 is none.
      source_prompts: what each picture shows now. Bits that both prompts find about as likely stay those of the given
        picture (`prompt_to_prompt`), besides those that mask and strength keep.
      threshold: by how much the probability of a bit must change from one prompt to the other to be drawn anew.
    """

    pictures: Sequence[Image.Image]
    prompts: Sequence[str]
    masks: Sequence[Image.Image] | None = None
    strength: float = 1.0
    seeds: Sequence[int] | None = None
    negative_prompts: Sequence[str] | None = None
    paste: bool = True
    fixed: bool = False
    feather: int = 0
    source_prompts: Sequence[str] | None = None
    threshold: float = 0.3

    def check(self, smallest: int) -> None:
        """Raises UserError where pictures, masks and strength do not fit or cannot be drawn.

        Args:
          smallest: pixels that a side must have at least.
        """
        count = len(self.pictures)
        if not count or count != len(self.prompts):
            raise UserError(f"got {count} pictures and {len(self.prompts)} prompts; give one prompt for each")
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength is {self.strength}; give a number from 0 (all is kept) to 1 (none)")
        if not 0 <= self.threshold <= 1:
            raise UserError(
                f"threshold is {self.threshold}; give a change of probability, from 0 (nearly all is drawn) to 1 (none)"
            )
        if not 0 <= self.feather <= MOST_FEATHER or (self.feather and self.masks is None):
            raise UserError(
                f"feather is {self.feather} tokens; give 0 to {MOST_FEATHER}, and a mask whose edge becomes soft"
            )
        if self.source_prompts is not None and len(self.source_prompts) != count:
            raise UserError(
                f"got {count} pictures and {len(self.source_prompts)} source prompts; give one for each, or none"
            )
        if self.source_prompts is not None and self.feather:
            raise UserError("feather blends codes, and source prompts choose bits; leave one of them out")
        if self.masks is not None and len(self.masks) != count:
            raise UserError(f"got {count} pictures and {len(self.masks)} masks; give one for each, or none")
        for number, picture in enumerate(self.pictures):
            _check_picture(number, picture, smallest)
            if self.masks is not None:
                _check_mask(number, picture, self.masks[number])


def _check_picture(number: int, picture: Image.Image, smallest: int) -> None:
    size = f"picture {number} has {picture.width}x{picture.height} pixels"
    if min(picture.size) < smallest:
        raise UserError(f"{size}; a token alone has {smallest}x{smallest}: give a larger one")
    if picture.width * picture.height > MOST_PIXELS:
        raise UserError(f"{size}, more than {MOST_PIXELS}; make it smaller first")
    ratio, nearest = (
        picture.height / picture.width,
        scales.nearest_aspect_ratio(picture.height, picture.width),
    )
    height, width = scales.parse_aspect_ratio(nearest)
    if max(ratio / (height / width), height / width / ratio) > _OBLONG:
        raise UserError(f"{size}, far from every aspect ratio (the nearest is {nearest}); cut it into parts")


def _check_mask(number: int, picture: Image.Image, mask: Image.Image) -> None:
    if mask.size != picture.size:
        raise UserError(
            f"mask {number} has {mask.width}x{mask.height} pixels and its picture {picture.width}x{picture.height}; "
            "they must be the same"
        )
    drawn = white(mask)
    if not drawn.any():
        raise UserError(
            f"mask {number} has nothing white, so that nothing would be drawn; paint a part white"
        )
    if drawn.all():
        raise UserError(f"mask {number} is all white, so that nothing would be kept; leave it out")


class Pipeline(Protocol):
    """What editing needs of an `InfinityPipeline`."""

    model: TrainedModel
    settings: SampleConfig

    def arrays(self, request: SampleRequest, settings: SampleConfig | None = None) -> np.ndarray:
        """Draws pictures uint8 [N,H,W,3]."""
        ...

    def probabilities(
        self, request: SampleRequest, settings: SampleConfig | None = None
    ) -> tuple[np.ndarray, ...]:
        """Computes how likely each bit of given pictures is 1 by their prompts."""
        ...

    def picture_size(self, aspect_ratio: str) -> tuple[int, int]:
        """Returns (height, width) of pictures of a ratio."""
        ...


def edit(pipeline: Pipeline, request: EditRequest, settings: SampleConfig | None = None) -> list[Image.Image]:
    """Draws the asked parts of pictures anew.

    Each picture is brought to the nearest aspect ratio that the model draws, edited there, and brought back to its own
    size where `request.paste` puts back what a mask keeps.

    Args:
      settings: None takes the checkpoint's own.
    Returns:
      N RGB pictures.
    Raises:
      UserError: a picture, mask, prompt or setting that cannot be drawn; it comes before anything is drawn.
    """
    budget = pipeline.model.tokenizer.scales
    request.check(pipeline.model.tokenizer.config.transformer_stride)
    ratios = [
        "1:1" if scales.is_square(budget) else scales.nearest_aspect_ratio(x.height, x.width)
        for x in request.pictures
    ]
    seeds = range(len(ratios)) if request.seeds is None else request.seeds
    whole = SampleRequest(request.prompts, seeds, request.negative_prompts).checked()
    if request.source_prompts is not None:
        # `pipeline.probabilities` are those of plain sampling, so the new prompt's must be drawn plainly too.
        plain = {"unguided_scales": (), "reuse_guidance": False, "pruning": "none"}
        plain |= {"guidance_parallel": 1.0, "guidance_norm": 0.0, "bit_confidence": ()}
        settings = (settings or pipeline.settings).changed(**plain)
    out: dict[int, Image.Image] = {}
    for ratio in dict.fromkeys(ratios):
        numbers = [i for i, own in enumerate(ratios) if own == ratio]
        given = _given(pipeline, request, numbers, ratio)
        part = dataclasses.replace(whole.part(numbers), aspect_ratio=ratio, given=given)
        if request.source_prompts is not None:
            sources = [request.source_prompts[i] for i in numbers]
            part = _where_prompts_differ(pipeline, part, sources, request.threshold, settings)
        for i, array in zip(numbers, pipeline.arrays(part, settings), strict=True):
            out[i] = Image.fromarray(array)
            if request.paste and request.masks is not None:
                out[i] = paste(out[i], request.pictures[i], request.masks[i])
    return [out[i] for i in range(len(ratios))]


def _where_prompts_differ(
    pipeline: Pipeline,
    request: SampleRequest,
    sources: Sequence[str],
    threshold: float,
    settings: SampleConfig | None,
) -> SampleRequest:
    """Lets the bits that both prompts find about as likely stay too."""
    assert request.given is not None
    before: Any = pipeline.probabilities(dataclasses.replace(request, prompts=sources), settings)
    threshold_B: Any = np.full(len(sources), threshold, np.float32)
    given = request.given._replace(before=before, threshold_B=threshold_B)
    return dataclasses.replace(request, given=given)


def _given(pipeline: Pipeline, request: EditRequest, numbers: Sequence[int], ratio: str) -> Given:
    """Encodes the pictures with these numbers, and tells what of them is kept: arrays of the host."""
    tokenizer, params = pipeline.model.tokenizer.config, pipeline.model.tokenizer.params
    schedule = scales.make_schedule(pipeline.model.tokenizer.scales, ratio)
    height, width = pipeline.picture_size(ratio)
    resized = [
        request.pictures[i].convert("RGB").resize((width, height), Image.Resampling.LANCZOS) for i in numbers
    ]
    # One after the other: a long list takes no more memory, and compiles nothing new.
    images = [decoding.to_float(np.asarray(picture))[None] for picture in resized]
    masks = None if request.masks is None else [white(request.masks[i]) for i in numbers]
    where = [
        kept_by_scale(None if masks is None else masks[n], schedule, request.strength, request.feather)
        for n in range(len(numbers))
    ]
    by_scale: Any = tuple(np.stack(maps) for maps in zip(*where, strict=True))
    # Between two prompts: quantised anew, the bits that stay would undo what those before them change.
    if not request.fixed and request.source_prompts is None:
        features: Any = np.concatenate([encoder(tokenizer)(params, image) for image in images])
        return Given(by_scale, features_BHWd=features)
    side = tokenizer.patchify
    quantise = _quantiser(tokenizer, schedule.times(side))
    symbols: Any = [
        np.concatenate(x) for x in zip(*(quantise(params, image) for image in images), strict=True)
    ]
    if side > 1:
        symbols = [np.asarray(pyramid.to_transformer(jnp.asarray(x), side)) for x in symbols]
    return Given(by_scale, symbols=tuple(symbols))


@functools.cache
def encoder(config: TokenizerConfig) -> Any:
    """Makes (parameters, pictures) -> features."""
    module: Any = Tokenizer(config)
    return jax.jit(lambda params, image: module.apply({"params": params}, image, method="encode"))


@functools.cache
def _quantiser(config: TokenizerConfig, schedule: ScaleSchedule) -> Any:
    """Makes (parameters, pictures) -> the symbols of all scales."""
    module: Any = Tokenizer(config)
    return jax.jit(lambda params, image: through_bits(module, params, image, schedule)[1].symbols)
