"""How pictures are drawn: a frozen value, of which the command line makes its options."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

from infinity_jax.config.checks import DTYPES, nearest
from infinity_jax.errors import UserError
from infinity_jax.fields import Checked, OneOf, Range, Unlimited

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
    top_k: Annotated[int, Range(0, 2**20)] = _setting(
        0, "whole number", "of tokens drawn as indices: only the N likeliest; 0 is all"
    )
    guidance: Annotated[str, OneOf(GUIDANCE)] = _setting("logits", GUIDANCE, "what guidance mixes")
    unguided_scales: tuple[_Scale, ...] = _setting(
        (), "whole numbers", "scales (from 0) that draw with the caption alone, at half the cost"
    )
    reuse_guidance: bool = _setting(
        False, "flag", "guide them by what the caption changed at the last guided scale"
    )
    guidance_parallel: Annotated[float, Range(0, 1)] = _setting(
        1.0, "share", "share of the guidance along the caption's own logits that is kept; 1 is CFG, 0 is APG"
    )
    guidance_norm: Annotated[float, _STRENGTH] = _setting(
        0.0,
        "number",
        "the largest change by the caption before cfg, as root mean square of logits; 0 is no limit",
    )
    bit_confidence: tuple[Annotated[float, Range(0.5, 1)], ...] = _setting(
        (),
        "numbers",
        "of the first scales: raise the temperature until bits are no more certain, for more variety",
    )
    pruning: Annotated[str, Unlimited("fastvar, none, or SCALE:SHARE[,...]")] = _setting(
        "none",
        "name",
        "fastvar: run fewer tokens at late scales, for other pictures sooner; none; or SCALE:SHARE[,...] of the "
        "tokens, scales from 0, share 0 skips the scale",
    )
    smooth: bool = _setting(
        False, "flag", "mix the likeliest codes instead of drawing one (of codebooks; smoother pictures)"
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
