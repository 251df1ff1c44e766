"""What a tokenizer is: a frozen value, checked once when it is made."""

import dataclasses
from typing import Annotated

from infinity_jax.config.checks import DTYPES, check
from infinity_jax.fields import Checked, OneOf, Range, Share

TOKENIZER_REMAT = ("none", "block")
# Quantisers of a tokenizer.
BINARY, VECTOR = ("bsq", "lfq"), "vq"
_Multiplier = Annotated[int, Range(1, 64)]


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(Checked):
    """The BSQ tokenizer (docs/spec.md section 2).

    Attributes:
      bits: d, bits per token.
      base_width: channels of the first level.
      multipliers: width of each level over base_width; every level but the last halves the size.
      decoder_multipliers: the same of the decoder, where it is not as wide as the encoder; () is as the encoder.
      encoder_blocks, decoder_blocks: residual blocks a level.
      pixel_patch: pixels are first folded into channels, pixel_patch x pixel_patch each (1 in the release).
      patchify: the transformer reads patchify x patchify tokens as one (space-to-depth); 2 in the released 8B
        model, 1 elsewhere.
      quantizer: "bsq" or "lfq" (paper Table 3), whose tokens are bits; or "vq", VAR's, whose tokens are numbers of
        codes of `bits` channels.
      compute_dtype: dtype of the convolutions' inputs and results and of the maps between them; parameters and the
        statistics of GroupNorm stay float32.
      remat: what the backward pass recomputes to save memory, a name of `TOKENIZER_REMAT`: "none"; "block", all but
        what goes into a residual block, and into a stage of LPIPS.
      codes: of "vq": how many there are.
      phis: of "vq": convolutions that refine upsampled codes, shared by the scales (docs/spec_var.md section 2).
      phi_share: of "vq": share of the convolved codes in the refined ones.
      by_cosine: of "vq": a code is chosen by its direction, not by its distance.
      attention: over all places, after each residual block of the coarsest level, and between those in the middle.
      latent_kernel: side of the convolutions right before and right after the quantiser; 0 is none.
    """

    bits: Annotated[int, Range(1, 64)] = 32
    base_width: Annotated[int, Range(1, 2**14)] = 128
    multipliers: Annotated[tuple[_Multiplier, ...], Range(1, 8)] = (1, 2, 4, 4, 4)
    encoder_blocks: Annotated[int, Range(1, 64)] = 2
    decoder_blocks: Annotated[int, Range(1, 64)] = 3
    pixel_patch: Annotated[int, Range(1, 64)] = 1
    patchify: Annotated[int, Range(1, 8)] = 1
    quantizer: Annotated[str, OneOf((*BINARY, VECTOR))] = "bsq"
    compute_dtype: Annotated[str, OneOf(DTYPES)] = "float32"
    # Not in the text of a config: fingerprints of features are made of it, and these are the encoder's alone.
    decoder_multipliers: Annotated[tuple[_Multiplier, ...], Range(0, 8)] = dataclasses.field(
        default=(), repr=False
    )
    remat: Annotated[str, OneOf(TOKENIZER_REMAT)] = dataclasses.field(default="none", repr=False)
    codes: Annotated[int, Range(0, 2**20)] = dataclasses.field(default=0, repr=False)
    phis: Annotated[int, Range(1, 64)] = dataclasses.field(default=4, repr=False)
    phi_share: Share = dataclasses.field(default=0.5, repr=False)
    by_cosine: bool = dataclasses.field(default=False, repr=False)
    attention: bool = dataclasses.field(default=False, repr=False)
    latent_kernel: Annotated[int, Range(0, 15)] = dataclasses.field(default=0, repr=False)

    def __post_init__(self):
        super().__post_init__()
        check(
            (self.codes > 1) == (self.quantizer == VECTOR),
            f"codes {self.codes} with quantizer {self.quantizer!r}; {VECTOR!r} needs 2 or more, the others have 0",
        )
        check(
            self.latent_kernel == 0 or self.latent_kernel % 2 == 1,
            f"latent_kernel {self.latent_kernel} has no middle; use an odd number, or 0 for none",
        )
        check(
            self.bits > 1 or self.quantizer == "lfq",
            "a single bit on a sphere has no gradient; use 2 bits or more, or quantizer 'lfq'",
        )
        levels, given = len(self.multipliers), len(self.decoder_multipliers)
        check(
            given in (0, levels),
            f"decoder_multipliers {self.decoder_multipliers} are {given} levels, and multipliers {levels}; give as "
            "many, or () for the encoder's",
        )
        for w in (*self.encoder_widths, *self.decoder_widths):
            check(w % 32 == 0, f"tokenizer width {w} is not divisible by 32, the groups of GroupNorm")

    @property
    def encoder_widths(self) -> tuple[int, ...]:
        """Channels of each level of the encoder, finest first."""
        return tuple(self.base_width * multiplier for multiplier in self.multipliers)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of each level of the decoder, finest first."""
        return tuple(
            self.base_width * multiplier for multiplier in self.decoder_multipliers or self.multipliers
        )

    @property
    def stride(self) -> int:
        """Pixels per token along one side."""
        return self.pixel_patch * 2 ** (len(self.multipliers) - 1)

    @property
    def transformer_bits(self) -> int:
        """Bits of a token as the transformer sees it."""
        return self.bits * self.patchify**2

    @property
    def transformer_stride(self) -> int:
        """Pixels per token of the transformer along one side."""
        return self.stride * self.patchify
