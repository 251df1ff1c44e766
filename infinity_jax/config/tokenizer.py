"""What a tokenizer is: a frozen value, checked once when it is made."""

import dataclasses
from typing import Annotated

from infinity_jax.config.checks import DTYPES, check
from infinity_jax.fields import Checked, OneOf, Range, Share

TOKENIZER_REMAT = ("none", "block")
# Quantisers of a tokenizer, and kinds of its encoder and decoder.
BINARY, VECTOR = ("bsq", "lfq"), "vq"
CONVOLUTIONS, VIT = "convolutions", "vit"
_Multiplier = Annotated[int, Range(1, 64)]


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(Checked):
    """The BSQ tokenizer (docs/spec.md section 2).

    Attributes:
      bits: d, bits per token.
      base_width: channels of the first level; of a ViT `multipliers` has one entry, and its channels are the product.
      multipliers: width of each level over base_width; every level but the last halves the size.
      decoder_multipliers: the same of the decoder, where it is not as wide as the encoder; () is as the encoder.
      encoder_blocks, decoder_blocks: residual blocks a level; blocks of a ViT.
      pixel_patch: pixels are first folded into channels, pixel_patch x pixel_patch each (1 in the release); the patches
        of a ViT.
      patchify: the transformer reads patchify x patchify tokens as one (space-to-depth); 2 in the released 8B
        model, 1 elsewhere.
      quantizer: "bsq" or "lfq" (paper Table 3), whose tokens are bits; or "vq", VAR's, whose tokens are numbers of
        codes of `bits` channels.
      compute_dtype: dtype of the convolutions' inputs and results and of the maps between them; parameters and the
        statistics of GroupNorm stay float32.
      remat: what the backward pass recomputes to save memory, a name of `TOKENIZER_REMAT`: "none"; "block", all but
        what goes into a residual block, and into a stage of LPIPS.
      codes: of "vq": how many there are.
      phis: of "vq": convolutions that refine upsampled codes, shared by the scales (docs/spec_var.md section 2); 0 is
        none.
      phi_share: of "vq": share of the convolved codes in the refined ones.
      by_cosine: of "vq": a code is chosen by its direction, not by its distance.
      attention: over all places, after each residual block of the coarsest level, and between those in the middle.
      latent_kernel: side of the convolutions right before and right after the quantiser; 0 is none.
      sphere: of "vq": features and codes are scaled to unit length first.
      architecture: "convolutions", or "vit", BSQ-ViT's (docs/spec_bsq_vit.md section 1).
      side: of "vit": pixels of a side of its pictures, the only ones that it knows positions for.
      heads, decoder_heads: of "vit": heads of its attention; a decoder's 0 is as the encoder's.
      hidden: of "vit": channels between the two maps from the decoder to pixels.
      scaled_gradient: of bits: a code passes its gradient on times the size of its channels, as in BSQ-ViT, instead of
        as it is.
      laplace: of "vit": the decoder gives a distribution of the logits of pixels, a place and a spread for each, and
        the loss of pixels is its negative logarithm.
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
    # Not in the text of a config: fingerprints of features are made of it, beside the encoder's weights, and are to
    # stay those of earlier versions. What of these features depend on is added in `TrainedTokenizer.encoder_hash`.
    decoder_multipliers: Annotated[tuple[_Multiplier, ...], Range(0, 8)] = dataclasses.field(
        default=(), repr=False
    )
    remat: Annotated[str, OneOf(TOKENIZER_REMAT)] = dataclasses.field(default="none", repr=False)
    codes: Annotated[int, Range(0, 2**20)] = dataclasses.field(default=0, repr=False)
    phis: Annotated[int, Range(0, 64)] = dataclasses.field(default=4, repr=False)
    phi_share: Share = dataclasses.field(default=0.5, repr=False)
    by_cosine: bool = dataclasses.field(default=False, repr=False)
    attention: bool = dataclasses.field(default=False, repr=False)
    latent_kernel: Annotated[int, Range(0, 15)] = dataclasses.field(default=0, repr=False)
    sphere: bool = dataclasses.field(default=False, repr=False)
    architecture: Annotated[str, OneOf((CONVOLUTIONS, VIT))] = dataclasses.field(
        default=CONVOLUTIONS, repr=False
    )
    side: Annotated[int, Range(0, 2**14)] = dataclasses.field(default=0, repr=False)
    heads: Annotated[int, Range(1, 2**10)] = dataclasses.field(default=12, repr=False)
    decoder_heads: Annotated[int, Range(0, 2**10)] = dataclasses.field(default=0, repr=False)
    hidden: Annotated[int, Range(1, 2**16)] = dataclasses.field(default=3072, repr=False)
    scaled_gradient: bool = dataclasses.field(default=False, repr=False)
    laplace: bool = dataclasses.field(default=False, repr=False)

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
        check(
            self.phis > 0 or self.phi_share == 0,
            f"phi_share {self.phi_share} with no phis; set it to 0, or phis to 1 or more",
        )
        check(
            not self.sphere or self.quantizer == VECTOR,
            "sphere is of quantizer 'vq'; bits are on one with 'bsq'",
        )
        check(
            not self.scaled_gradient or self.quantizer != VECTOR,
            "scaled_gradient is of bits; leave it out with quantizer 'vq'",
        )
        if self.architecture == VIT:
            self._check_vit()
            return
        check(
            not self.laplace and not self.side,
            f"laplace {self.laplace} and side {self.side} are of architecture 'vit' alone; leave them out",
        )
        for w in (*self.encoder_widths, *self.decoder_widths):
            check(w % 32 == 0, f"tokenizer width {w} is not divisible by 32, the groups of GroupNorm")

    def _check_vit(self) -> None:
        check(
            len(self.multipliers) == 1,
            f"multipliers {self.multipliers} are levels of convolutions; a ViT has one width: give one, like 1,",
        )
        check(
            self.side > 0 and self.side % self.pixel_patch == 0,
            f"side {self.side} is not a whole number of patches of pixel_patch {self.pixel_patch} pixels; a ViT needs "
            "the side of its pictures",
        )
        check(
            not self.attention and not self.latent_kernel, "attention and latent_kernel are of convolutions"
        )
        for width, heads in zip(
            (*self.encoder_widths, *self.decoder_widths), self.heads_of_halves, strict=True
        ):
            check(width % heads == 0, f"width {width} of a ViT is not divisible by its {heads} heads")

    @property
    def heads_of_halves(self) -> tuple[int, int]:
        """Heads of a ViT's encoder and decoder."""
        return self.heads, self.decoder_heads or self.heads

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
