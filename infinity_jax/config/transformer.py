"""What a transformer is, and how captions are read for it: frozen values, checked once when they are made."""

import dataclasses
from typing import Annotated

from infinity_jax.config.checks import DTYPES, check
from infinity_jax.errors import UserError
from infinity_jax.fields import Checked, FilePath, OneOf, Range, ShareBelowOne, Unlimited
from infinity_jax.scales import ScaleSchedule, make_schedule

REMAT = ("none", "block", "dots", "offload")
HEADS = ("bits", "index")
# Before the name of a scale preset in `TransformerConfig.positions`. Text, as it is one value for both models' configs,
# for --config.model.positions and for config.json.
LEARNED, LEARNED_WITH_SCALES = "learned:", "learned+scales:"
CONDITIONS, ADALN, ATTENTION = ("text", "class"), ("shared", "own"), ("cosine", "plain")
# A label is one token of two channels, see `transformer/conditions.py`.
LABEL_BASE, LABEL_CHANNELS = 256, 2
MOST_INDEX_BITS = 16  # the classifier's size doubles with every bit


@dataclasses.dataclass(frozen=True)
class TransformerConfig(Checked):
    """The transformer that predicts bits (docs/spec.md section 4, paper Table 6).

    Attributes:
      layers, width, heads: size.
      bits: channels of a token that it reads, and bits that it predicts.
      head: how it predicts them: "bits", two classes for each bit; "index", the conventional classifier of the paper's
        Table 5, one among 2^bits classes, for at most 16 bits, or one among `codes`.
      codes: with head "index": classes of a tokenizer whose tokens are numbers of codes (VAR's); 0 is 2^bits.
      positions: how tokens know their place: "rope2d", by rotary positions and a learned embedding of each scale;
        "learned:PRESET", the baseline of the paper's Fig. 13 (its learnable APE): a learned vector for each place of
        each scale of a scale preset's square pictures, like "learned:64px", is added to the residual stream instead of
        the scale embedding, and nothing is rotated. Such a model knows the preset's scales, or the first of them, only.
        "learned+scales:PRESET", as in VAR, adds the embedding of the scale too.
      condition: what pictures are drawn from: "text", by cross-attention and AdaLN; or "class", one of `classes`
        labels, by AdaLN alone.
      classes: how many labels there are; 0 without.
      adaln: whether blocks share the map from the condition to AdaLN and have a table each ("shared"), or have a map
        each ("own").
      attention: "cosine" with a learned scale, or "plain" products times 0.25 / sqrt(head), as in VAR without it.
      text_channels: channels of the text encoder's features.
      text_length: rows of the learned table that replaces the caption for guidance = the longest caption.
      ffn_multiple: the feed-forward layer has 4 C hidden channels, rounded to a multiple of it.
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
    codes: Annotated[int, Range(0, 2**20)] = 0
    condition: Annotated[str, OneOf(CONDITIONS)] = "text"
    classes: Annotated[int, Range(0, LABEL_BASE**2 - 1)] = 0
    adaln: Annotated[str, OneOf(ADALN)] = "shared"
    attention: Annotated[str, OneOf(ATTENTION)] = "cosine"
    ffn_multiple: Annotated[int, Range(1, 2**16)] = 256

    def __post_init__(self):
        super().__post_init__()
        w, h = self.width, self.heads
        near = f"{w // h * h}, {(w // h + 1) * h}"
        check(w % h == 0, f"width {w} is not divisible by heads {h}; nearest: {near}")
        check(
            self.head_size % 4 == 0,
            f"head size {self.head_size} (= {w} / {h}) is not a multiple of 4, as RoPE2d needs",
        )
        check(
            self.ffn_width > 0,
            f"width {w} is too small: its feed-forward layer would be empty; use 64 or more",
        )
        check(
            (self.classes > 0) == (self.condition == "class"),
            f"classes {self.classes} with condition {self.condition!r}; give their number with labels, 0 without",
        )
        check(
            self.condition == "text" or (self.text_channels, self.text_length) == (LABEL_CHANNELS, 1),
            f"text_channels {self.text_channels} and text_length {self.text_length}; a label is one token of "
            f"{LABEL_CHANNELS} channels",
        )
        check(
            self.codes == 0 or self.head == "index",
            f"codes {self.codes} are predicted by head 'index', and this model's is {self.head!r}",
        )
        check(
            self.head == "bits" or self.codes > 0 or self.bits <= MOST_INDEX_BITS,
            f"head 'index' would have 2^{self.bits} classes, {self.head_logits * w:.3g} weights with width {w}; it "
            f"works up to {MOST_INDEX_BITS} bits: use a tokenizer of fewer bits, or head 'bits'",
        )
        check(
            self.positions == "rope2d" or self.positions.startswith((LEARNED, LEARNED_WITH_SCALES)),
            f"unknown positions {self.positions!r}; use 'rope2d', '{LEARNED}PRESET' or '{LEARNED_WITH_SCALES}PRESET' "
            "with a scale preset, like 64px",
        )
        _ = self.learned_schedule  # raises if there is no such preset

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def head_logits(self) -> int:
        """Logits of one token: two a bit, or one for each index."""
        return 2 * self.bits if self.head == "bits" else self.codes or 2**self.bits

    @property
    def learned_schedule(self) -> ScaleSchedule | None:
        """The schedule of which each token has a learned position; None with "rope2d"."""
        _, learned, preset = self.positions.partition(":")
        return make_schedule(preset) if learned else None

    @property
    def embeds_scales(self) -> bool:
        """Whether tokens get a learned vector of their scale."""
        return not self.positions.startswith(LEARNED)

    def check_schedule(self, schedule: ScaleSchedule) -> None:
        """Raises UserError unless a schedule begins with one token, and the model has positions for it.

        Rotary ones are for all.
        """
        if schedule.sizes[0] != (1, 1):
            height, width = schedule.sizes[0]
            raise UserError(
                f"the first scale of {schedule} has {height}x{width} tokens, and a transformer begins with one: use "
                "scales that begin with 1x1, like 64px, and a tokenizer that is trained for them"
            )
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
        return round(4 * self.width / self.ffn_multiple) * self.ffn_multiple


@dataclasses.dataclass(frozen=True)
class TextConfig(Checked):
    """How captions are read.

    Attributes:
      encoder: "minilm" (bundled) or "t5"; or "labels", which takes a caption for the name or number of a class.
      max_length: tokens of a caption; the rest is cut off.
      path: for "t5" the folder text_encoder/ of `infinity-jax convert`; "" for "minilm".
      dtype: of "t5": what its linear maps and the operands of its products are rounded to. "minilm", which is small,
        is always float32.
      classes: of "labels": how many there are.
      labels: their names, in the order of their numbers; () knows their numbers alone.
    """

    encoder: Annotated[str, OneOf(("minilm", "t5", "labels"))]
    max_length: Annotated[int, Range(1, 2**16)]
    path: FilePath = ""
    dtype: Annotated[str, OneOf(("bfloat16", "float32"))] = "bfloat16"
    classes: Annotated[int, Range(0, LABEL_BASE**2 - 1)] = 0
    labels: tuple[Annotated[str, Unlimited("names of classes")], ...] = ()
