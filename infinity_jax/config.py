"""What the models are: frozen values that modules read, checked once when they are made.

Files under `configs/` give an ml_collections.ConfigDict; `config_files.from_dict` turns its sections into these.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Annotated, Any

from infinity_jax.errors import UserError
from infinity_jax.fields import Checked, FilePath, OneOf, Range, ShareBelowOne, Unlimited
from infinity_jax.scales import ScaleSchedule, make_schedule

DTYPES = ("float32", "bfloat16")
REMAT = ("none", "block", "dots", "offload")
TOKENIZER_REMAT = REMAT[:2]
HEADS = ("bits", "index")
# Before the name of a scale preset in `TransformerConfig.positions`. Text, as it is one value for both models' configs,
# for --config.model.positions and for config.json.
LEARNED = "learned:"
MOST_INDEX_BITS = 16  # the classifier's size doubles with every bit
_Multiplier = Annotated[int, Range(1, 64)]
WEIGHT_DTYPES = ("float32", "bfloat16", "float16")  # of weights on disk


def _check(condition: bool, message: str):
    if not condition:
        raise UserError(message)


def check_choice(value: str, known: Sequence[str], what: str) -> None:
    """Raises UserError, with the names that exist, unless `value` is one of those known."""
    _check(value in known, f"unknown {what} {value!r}; use one of {', '.join(known)}")


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
      quantizer: "bsq" or "lfq" (paper Table 3).
      compute_dtype: dtype of the convolutions' inputs and results and of the maps between them; parameters and the
        statistics of GroupNorm stay float32.
      remat: what the backward pass recomputes to save memory, a name of `TOKENIZER_REMAT`: "none"; "block", all but
        what goes into a residual block, and into a stage of LPIPS.
    """

    bits: Annotated[int, Range(1, 64)] = 32
    base_width: Annotated[int, Range(1, 2**14)] = 128
    multipliers: Annotated[tuple[_Multiplier, ...], Range(1, 8)] = (1, 2, 4, 4, 4)
    encoder_blocks: Annotated[int, Range(1, 64)] = 2
    decoder_blocks: Annotated[int, Range(1, 64)] = 3
    pixel_patch: Annotated[int, Range(1, 64)] = 1
    patchify: Annotated[int, Range(1, 8)] = 1
    quantizer: Annotated[str, OneOf(("bsq", "lfq"))] = "bsq"
    compute_dtype: Annotated[str, OneOf(DTYPES)] = "float32"
    # Not in the text of a config: fingerprints of features are made of it, and these are the encoder's alone.
    decoder_multipliers: Annotated[tuple[_Multiplier, ...], Range(0, 8)] = dataclasses.field(
        default=(), repr=False
    )
    remat: Annotated[str, OneOf(TOKENIZER_REMAT)] = dataclasses.field(default="none", repr=False)

    def __post_init__(self):
        super().__post_init__()
        _check(
            self.bits > 1 or self.quantizer == "lfq",
            "a single bit on a sphere has no gradient; use 2 bits or more, or quantizer 'lfq'",
        )
        levels, given = len(self.multipliers), len(self.decoder_multipliers)
        _check(
            given in (0, levels),
            f"decoder_multipliers {self.decoder_multipliers} are {given} levels, and multipliers {levels}; give as "
            "many, or () for the encoder's",
        )
        for w in (*self.encoder_widths, *self.decoder_widths):
            _check(w % 32 == 0, f"tokenizer width {w} is not divisible by 32, the groups of GroupNorm")

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


@dataclasses.dataclass(frozen=True)
class TransformerConfig(Checked):
    """The transformer that predicts bits (docs/spec.md section 4, paper Table 6).

    Attributes:
      layers, width, heads: size.
      bits: bits per token that it reads and predicts.
      head: how it predicts them: "bits", two classes for each bit; "index", the conventional classifier of the paper's
        Table 5, one among 2^bits classes, for at most 16 bits.
      positions: how tokens know their place: "rope2d", by rotary positions and a learned embedding of each scale;
        "learned:PRESET", the baseline of the paper's Fig. 13 (its learnable APE): a learned vector for each place of
        each scale of a scale preset's square pictures, like "learned:64px", is added to the residual stream instead of
        the scale embedding, and nothing is rotated. Such a model knows the preset's scales, or the first of them, only.
      text_channels: channels of the text encoder's features.
      text_length: rows of the learned table that replaces the caption for guidance = the longest caption.
      drop_path: rate of stochastic depth in the last layer; it grows linearly from 0 in the first.
      compute_dtype: dtype of the matmuls' inputs; parameters, sums and the residual stream stay float32.
      remat: what the backward pass recomputes to save memory, a name of `REMAT`: "none"; "block", all but what
        goes into a block; "dots", all but the results of linear maps; "offload", as "block" with what goes into a
        block kept in the host's memory.
      scan_layers: one compiled block, scanned (True), or one per layer; the same numbers and parameters.
    """

    layers: Annotated[int, Range(1, 1000)] = 12
    width: Annotated[int, Range(1, 2**17)] = 768
    heads: Annotated[int, Range(1, 2**12)] = 8
    bits: Annotated[int, Range(1, 2**12)] = 32
    head: Annotated[str, OneOf(HEADS)] = "bits"
    positions: Annotated[str, Unlimited("rope2d, or learned:PRESET")] = "rope2d"
    text_channels: Annotated[int, Range(1, 2**17)] = 2048
    text_length: Annotated[int, Range(1, 2**16)] = 512
    drop_path: ShareBelowOne = 0.1
    compute_dtype: Annotated[str, OneOf(DTYPES)] = "bfloat16"
    remat: Annotated[str, OneOf(REMAT)] = "none"
    scan_layers: bool = True

    def __post_init__(self):
        super().__post_init__()
        w, h = self.width, self.heads
        near = f"{w // h * h}, {(w // h + 1) * h}"
        _check(w % h == 0, f"width {w} is not divisible by heads {h}; nearest: {near}")
        _check(
            self.head_size % 4 == 0,
            f"head size {self.head_size} (= {w} / {h}) is not a multiple of 4, as RoPE2d needs",
        )
        _check(
            self.ffn_width > 0,
            f"width {w} is too small: its feed-forward layer would be empty; use 64 or more",
        )
        _check(
            self.head == "bits" or self.bits <= MOST_INDEX_BITS,
            f"head 'index' would have 2^{self.bits} classes, {self.head_logits * w:.3g} weights with width {w}; it "
            f"works up to {MOST_INDEX_BITS} bits: use a tokenizer of fewer bits, or head 'bits'",
        )
        _check(
            self.positions == "rope2d" or self.positions.startswith(LEARNED),
            f"unknown positions {self.positions!r}; use 'rope2d' or '{LEARNED}PRESET' with a scale preset, like 64px",
        )
        _ = self.learned_schedule  # raises if there is no such preset

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def head_logits(self) -> int:
        """Logits of one token: two a bit, or one for each of 2^bits indices."""
        return 2 * self.bits if self.head == "bits" else 2**self.bits

    @property
    def learned_schedule(self) -> ScaleSchedule | None:
        """The schedule of which each token has a learned position; None with "rope2d"."""
        learned = self.positions.startswith(LEARNED)
        return make_schedule(self.positions.removeprefix(LEARNED)) if learned else None

    def check_schedule(self, schedule: ScaleSchedule) -> None:
        """Raises UserError unless the model has positions for a schedule: rotary ones are for all."""
        known = schedule.sizes if self.learned_schedule is None else self.learned_schedule.sizes
        if schedule.sizes != known[: schedule.n_scales]:
            raise UserError(
                f"positions {self.positions!r} are learned for the scales {self.learned_schedule} alone, and this "
                f"schedule is {schedule}; use square pictures of that preset, or a model with positions 'rope2d'"
            )

    @property
    def pool_heads(self) -> int:
        """Heads of the attentive text pool: one per 128 text channels (64 where width > 4096).

        Where the width is no multiple of that, the next smaller count that divides it.
        """
        most = max(1, self.text_channels // (64 if self.width > 4096 else 128))
        return next(n for n in range(most, 0, -1) if self.width % n == 0)

    @property
    def ffn_width(self) -> int:
        """Hidden channels of the feed-forward layer: round(4 C / 256) * 256, halves to even."""
        return round(4 * self.width / 256) * 256


@dataclasses.dataclass(frozen=True)
class TextConfig(Checked):
    """How captions are read.

    Attributes:
      encoder: "minilm" (bundled) or "t5".
      max_length: tokens of a caption; the rest is cut off.
      path: for "t5" the folder text_encoder/ of `infinity-jax convert`; "" for "minilm".
      dtype: of "t5": what its linear maps and the operands of its products are rounded to. "minilm", which is small,
        is always float32.
    """

    encoder: Annotated[str, OneOf(("minilm", "t5"))]
    max_length: Annotated[int, Range(2, 2**16)]
    path: FilePath = ""
    dtype: Annotated[str, OneOf(("bfloat16", "float32"))] = "bfloat16"


def nearest(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Says which name may have been meant, for the message about an unknown one."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(known)}"


_STRENGTH = Range(0, 1000)
_Scale = Annotated[int, Range(0, 63)]
GUIDANCE = ("logits", "features", "both", "pyramid", "none")


def _setting(default: Any, form: str | tuple[str, ...], text: str) -> Any:
    """Declares a field of `SampleConfig` with what the command line needs: form (of `cli.options`) or choices, help."""
    return dataclasses.field(default=default, metadata={"form": form, "help": text})


@dataclasses.dataclass(frozen=True)
class SampleConfig(Checked):
    """How bits are drawn (docs/spec.md section 7). The command line makes an option of each field, with its text.

    With cfg 1 there is no guidance, with tau 0 the likelier value of a bit is taken. Guidance on "features" mixes the
    output of the fifth layer from the end; with "pyramid" it is on logits, and cfg grows from 1 linearly over the
    scales. For `pruning` see `token_pruning.named`.
    """

    cfg: Annotated[float, _STRENGTH] | tuple[Annotated[float, _STRENGTH], ...] = _setting(
        4.0, "numbers", "strength of guidance, one number or one per scale"
    )
    tau: Annotated[float, _STRENGTH] | tuple[Annotated[float, _STRENGTH], ...] = _setting(
        1.0, "numbers", "temperature of the bits, one number or one per scale"
    )
    top_p: Annotated[float, Range(above=0, at_most=1)] = _setting(
        1.0, "probability", "a bit value with probability <= 1 - X is never drawn"
    )
    guidance: Annotated[str, OneOf(GUIDANCE)] = _setting("logits", GUIDANCE, "what guidance mixes")
    unguided_scales: tuple[_Scale, ...] = _setting(
        (), "whole numbers", "scales (from 0) that draw with the caption alone, at half the cost"
    )
    reuse_guidance: bool = _setting(
        False, "flag", "guide them by what the caption changed at the last guided scale"
    )
    pruning: Annotated[str, Unlimited("fastvar, none, or SCALE:SHARE[,...]")] = _setting(
        "none",
        "name",
        "fastvar: run fewer tokens at late scales, for other pictures sooner; none; or SCALE:SHARE[,...] of the "
        "tokens, scales from 0, share 0 skips the scale",
    )
    decoder_dtype: Annotated[str, OneOf(DTYPES)] = _setting(
        "bfloat16",
        DTYPES,
        "what the tokenizer's decoder multiplies, with float32 sums: float32, or bfloat16 where that is quicker",
    )

    def changed(self, **values: Any) -> "SampleConfig":
        """Returns a copy with new values of some fields; None keeps a field, cfg and tau of one element become numbers.

        Raises:
          UserError: there is no such field (the nearest one is named), or a value is wrong.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in values:
            if name not in known:
                raise UserError(f"unknown setting {name!r}; {nearest(name, known)}")
        new = {name: value for name, value in values.items() if value is not None}
        for name, value in new.items():
            if isinstance(value, Sequence) and not isinstance(value, str):
                new[name] = value[0] if name in ("cfg", "tau") and len(value) == 1 else tuple(value)
        return dataclasses.replace(self, **new)
