"""The published models by name: what they are and how they are sampled.

Paper Table 6 and docs/spec.md sections 4, 7 and 9.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.errors import UserError

# Tokenizers by name. All but the last have stride 16.
TOKENIZERS: Mapping[str, TokenizerConfig] = MappingProxyType(
    {f"d{bits}": TokenizerConfig(bits=bits) for bits in (14, 16, 18, 20, 24, 32, 64)}
    | {"d14_stride8_patchify": TokenizerConfig(bits=14, multipliers=(1, 2, 4, 4), patchify=2)}
)


@dataclasses.dataclass(frozen=True)
class Preset:
    """A whole published system.

    Attributes:
      transformer: its config.
      tokenizer: name of the tokenizer that it was trained with, in `TOKENIZERS`.
      scales: the largest pixel budget that it was trained for.
      block_chunks: in how many chunks the published names group the layers.
      cfg: strength of guidance.
    """

    transformer: TransformerConfig
    tokenizer: str = "d32"
    scales: str = "1M"
    block_chunks: int = 4
    cfg: float = 4.0

    def sections(self) -> dict[str, Any]:
        """Makes what config.json says besides the two configs: scales, how captions are read, how it is sampled."""
        return {
            "scales": self.scales,
            "text": {"encoder": "t5", "max_length": self.transformer.text_length},
            "sample": {"cfg": self.cfg, "tau": 1.0, "top_p": 1.0, "guidance": "logits"},
        }


# Sizes "125m" to "4.7b" are those of the paper's scaling study, "2b" and "8b" the released checkpoints.
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "125m": Preset(TransformerConfig(layers=12, width=768, heads=8), scales="0.06M"),
        "361m": Preset(TransformerConfig(layers=16, width=1152, heads=12), scales="0.06M"),
        "940m": Preset(TransformerConfig(layers=24, width=1536, heads=16), scales="0.06M"),
        "2.2b": Preset(TransformerConfig(layers=32, width=2080, heads=20), scales="0.06M"),
        "4.7b": Preset(TransformerConfig(layers=40, width=2688, heads=24), scales="0.06M"),
        "2b": Preset(TransformerConfig(layers=32, width=2048, heads=16), block_chunks=8),
        "8b": Preset(
            TransformerConfig(layers=40, width=3584, heads=28, bits=56),
            "d14_stride8_patchify",
            block_chunks=8,
            cfg=3.0,
        ),
    }
)


def preset(name: str) -> Preset:
    """Finds the published system `name`; UserError if there is none, with the names that exist."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
