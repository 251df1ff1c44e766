"""What is asked of a pipeline: which pictures, and which system draws them on which devices."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from infinity_jax import scales
from infinity_jax.checkpoints import opened
from infinity_jax.errors import UserError
from infinity_jax.sampling.given import Given
from infinity_jax.text.prompt import clean_prompts


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """Which pictures are drawn.

    Attributes:
      prompts: N texts.
      seeds: N whole numbers from 0 to 2^32 - 1, one a picture.
      negative_prompts: N texts to steer away from; None uses the learned empty caption.
      aspect_ratio: "height:width", one of the 15 of the paper's Table 10.
      budget: pixels, "0.06M" (256x256), "0.25M", "0.60M" or "1M" (1024x1024); None is what the checkpoint was trained
        for ("1M" for the released ones).
      batch: pictures drawn at once; None is 1, 4 or 16, by how many there are, fewer where a picture has more than
        512 tokens.
      given: what is not drawn, of N pictures; None draws all. `editing` and `upscaling` make it.
      given_scales: so many of the first scales are given whole.
      next_input: how the running sum becomes the next input, see `BinaryQuantizer.input_resize`.
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    negative_prompts: Sequence[str] | None = None
    aspect_ratio: str = "1:1"
    budget: str | None = None
    batch: int | None = None
    given: Given | None = None
    given_scales: int = 0
    next_input: str = "bilinear"

    @property
    def texts(self) -> list[str]:
        """All prompts and negative prompts."""
        return [*self.prompts, *(self.negative_prompts or [])]

    def part(self, numbers: Sequence[int]) -> "SampleRequest":
        """Picks some of the N pictures, by number."""
        negative = self.negative_prompts
        return dataclasses.replace(
            self,
            prompts=[self.prompts[i] for i in numbers],
            seeds=[self.seeds[i] for i in numbers],
            negative_prompts=None if negative is None else [negative[i] for i in numbers],
            given=jax.tree.map(lambda x: x[np.asarray(numbers)], self.given),
        )

    def checked(self) -> "SampleRequest":
        """Cleans the texts; raises UserError where texts or seeds cannot be drawn or do not go together."""
        count = len(self.prompts)
        if not count or count != len(self.seeds):
            raise UserError(
                f"got {count} prompts and {len(self.seeds)} seeds; give at least one prompt, and one seed for each"
            )
        negative = self.negative_prompts
        if negative is not None and len(negative) != count:
            raise UserError(
                f"got {count} prompts and {len(negative)} negative prompts; give one for each, or none"
            )
        for seed in self.seeds:
            if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
                raise UserError(f"seed {seed!r} is not a whole number from 0 to {2**32 - 1}")
        cleaned = None if negative is None else clean_prompts(negative)
        return dataclasses.replace(self, prompts=clean_prompts(self.prompts), negative_prompts=cleaned)


def listed(prompts: Sequence[str], seeds: Sequence[int] | None) -> tuple[list[str], Sequence[int]]:
    """Makes lists of prompts and seeds (None is 0, 1, 2, ...); raises UserError for one in the place of a list."""
    if isinstance(prompts, str):
        raise UserError(f"prompts is one text, {prompts[:40]!r}; give a list of texts: [{prompts[:40]!r}]")
    if isinstance(seeds, int):
        raise UserError(f"seeds is one number, {seeds}; give a list, one for each prompt: [{seeds}, ...]")
    prompts = list(prompts)
    return prompts, range(len(prompts)) if seeds is None else seeds


def schedule_of(own: str, aspect_ratio: str, budget: str | None) -> scales.ScaleSchedule:
    """Makes the schedule of a request; `own` names the scales of a checkpoint, which raises UserError for others."""
    if budget not in (None, own) and not {budget, own} <= scales.BUDGETS.keys():
        known = ", ".join(scales.BUDGETS) if own in scales.BUDGETS else own
        raise UserError(f"budget {budget!r} is not one that this checkpoint can draw; it can draw: {known}")
    return scales.make_schedule(budget or own, aspect_ratio)


@dataclasses.dataclass(frozen=True)
class SystemOptions:
    """Which system draws, and on which devices; see `InfinityPipeline.from_pretrained`.

    Attributes:
      checkpoint: an exported folder or a training workdir; the default is the one in the package.
      mesh, rules: how the devices are used, and what is split over them.
    """

    checkpoint: str = opened.BUNDLED
    mesh: str | None = None
    rules: str = ""
