"""What an upscaler is: the network that predicts the first scales of a picture from one of low quality (NSARM)."""

import dataclasses
from typing import Annotated

from infinity_jax.config.checks import check
from infinity_jax.fields import Checked, OneOf, Range, ShareBelowOne, Unlimited

LAYOUTS, NEXT_INPUTS = ("spatial", "release"), ("bilinear", "area")
COLOURS = ("none", "adain", "wavelet", "adain+wavelet")
_PerScale = Range(1, 64)


@dataclasses.dataclass(frozen=True)
class UpscalerConfig(Checked):
    """The transformation network and how what it gives is used (docs/spec_nsarm.md). The defaults are the release's.

    Attributes:
      bits: d, bits of a token of the tokenizer.
      side: tokens of a side of the low-quality picture's features; the picture is brought to so many times the
        tokenizer's stride in pixels.
      sizes: sides of the scales that are predicted, in tokens of the tokenizer.
      widths, layers, heads: of the transformer of each of these scales.
      extractor: channels of the first convolutions, which all scales share.
      dropout: in training.
      factor: how many times larger the picture becomes.
      layout: "spatial", where a token is a place; "release", whose tokens are the memory of [d,s,s] read as [s*s,d].
      next_input: how the sum of codes becomes the transformer's next input when pictures are drawn: "bilinear" as in
        training, or "area" as the release draws.
      colour: how colours are brought back to the low-quality picture's, a name of `COLOURS`.
      prompt: what all pictures are drawn from; "" is each picture's own caption.
    """

    bits: Annotated[int, Range(1, 64)] = 14
    side: Annotated[int, Range(1, 2**10)] = 32
    sizes: Annotated[tuple[Annotated[int, Range(1, 2**10)], ...], _PerScale] = (2, 4, 8, 12, 16, 24, 32)
    widths: Annotated[tuple[Annotated[int, Range(2, 2**14)], ...], _PerScale] = (
        *(64, 128, 256, 384),
        *(512, 768, 1024),
    )
    layers: Annotated[tuple[Annotated[int, Range(1, 256)], ...], _PerScale] = (4, 6, 8, 10, 12, 14, 16)
    heads: Annotated[tuple[Annotated[int, Range(1, 256)], ...], _PerScale] = (4, 4, 8, 8, 8, 12, 16)
    extractor: Annotated[tuple[Annotated[int, Range(1, 2**14)], ...], Range(2, 2)] = (64, 128)
    dropout: ShareBelowOne = 0.1
    factor: Annotated[int, Range(1, 64)] = 4
    layout: Annotated[str, OneOf(LAYOUTS)] = "spatial"
    next_input: Annotated[str, OneOf(NEXT_INPUTS)] = "bilinear"
    colour: Annotated[str, OneOf(COLOURS)] = "none"
    prompt: Annotated[str, Unlimited("text")] = ""

    def __post_init__(self):
        super().__post_init__()
        for name in ("widths", "layers", "heads"):
            found = len(getattr(self, name))
            check(
                found == len(self.sizes),
                f"{name} has {found} numbers and sizes {len(self.sizes)}; give one for each scale",
            )
        for width, heads in zip(self.widths, self.heads, strict=True):
            check(
                width % heads == 0 and width % 2 == 0,
                f"width {width} cannot be split into {heads} heads and into halves; change widths or heads",
            )
