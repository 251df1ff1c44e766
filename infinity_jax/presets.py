"""The published models by name: what they are and how they are sampled.

Paper Table 6 and docs/spec.md sections 4, 7 and 9.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from infinity_jax.config import LABEL_CHANNELS, TokenizerConfig, TransformerConfig, UpscalerConfig
from infinity_jax.errors import UserError


def _bsq_vit(bits: int, side: int = 256, **quantizer: Any) -> TokenizerConfig:
    """Makes a published BSQ-ViT: patches of 8 pixels, 12 + 12 blocks (docs/spec_bsq_vit.md section 1)."""
    return TokenizerConfig(
        bits=bits,
        base_width=768,
        multipliers=(1,),
        encoder_blocks=12,
        decoder_blocks=12,
        pixel_patch=8,
        architecture="vit",
        side=side,
        **quantizer,
    )


# Tokenizers by name. Infinity's and VAR's have stride 16, d14_stride8_patchify and BSQ-ViT's 8.
TOKENIZERS: Mapping[str, TokenizerConfig] = MappingProxyType(
    {f"d{bits}": TokenizerConfig(bits=bits) for bits in (14, 16, 18, 20, 24, 32, 64)}
    | {"d14_stride8_patchify": TokenizerConfig(bits=14, multipliers=(1, 2, 4, 4), patchify=2)}
    | {
        "var": TokenizerConfig(
            bits=32,
            quantizer="vq",
            codes=4096,
            base_width=160,
            multipliers=(1, 1, 2, 2, 4),
            attention=True,
            latent_kernel=3,
        )
    }
    # BSQ-ViT's (arXiv 2406.07548); "l24sq" has the lattice of arXiv 2512.14697 for a codebook.
    | {
        "bsqvit-128": _bsq_vit(18, 128, scaled_gradient=True),
        "bsqvit-b18": _bsq_vit(18, scaled_gradient=True),
        "bsqvit-b36": _bsq_vit(36, scaled_gradient=True),
        "bsqvit-l24sq": _bsq_vit(
            24, quantizer="vq", codes=196_560, phis=0, phi_share=0.0, by_cosine=True, sphere=True
        ),
    }
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
      sample: further settings of `SampleConfig`.
    """

    transformer: TransformerConfig
    tokenizer: str = "d32"
    scales: str = "1M"
    block_chunks: int = 4
    cfg: float = 4.0
    sample: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def sections(self) -> dict[str, Any]:
        """Makes what config.json says besides the two configs: scales, how captions are read, how it is sampled."""
        text: dict[str, Any] = {"encoder": "t5", "max_length": self.transformer.text_length}
        if self.transformer.condition == "class":
            text = {"encoder": "labels", "max_length": 1, "classes": self.transformer.classes}
        sample = {"cfg": self.cfg, "tau": 1.0, "top_p": 1.0, "guidance": "logits", **self.sample}
        return {"scales": self.scales, "text": text, "sample": sample}


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


def _var(depth: int, scales: str = "var256", adaln: str = "own") -> Preset:
    """Makes a published VAR: as many heads of 64 channels as layers, ImageNet classes (docs/spec_var.md section 3)."""
    return Preset(
        TransformerConfig(
            layers=depth,
            width=64 * depth,
            heads=depth,
            bits=TOKENIZERS["var"].bits,
            head="index",
            codes=TOKENIZERS["var"].codes,
            positions=f"learned+scales:{scales}",
            condition="class",
            classes=1000,
            text_channels=LABEL_CHANNELS,
            text_length=1,
            adaln=adaln,
            ffn_multiple=1,
            drop_path=0.1 * depth / 24,
        ),
        "var",
        scales,
        cfg=2.5,  # where the pyramid ends: 1 + the release's 1.5
        sample={"guidance": "pyramid", "top_k": 900, "top_p": 0.96},
    )


# VAR's (arXiv 2404.02905), whose captions are classes of ImageNet.
VAR: Mapping[str, Preset] = MappingProxyType(
    {f"var-d{depth}": _var(depth) for depth in (16, 20, 24, 30)}
    | {"var-d36": _var(36, "var512", adaln="shared")}
)

# NSARM's (arXiv 2510.00820), whose transformer is "8b".
UPSCALERS: Mapping[str, UpscalerConfig] = MappingProxyType(
    {
        "nsarm": UpscalerConfig(
            layout="release",
            next_input="area",
            colour="adain+wavelet",
            prompt="a high-quality image with harmonious colours and rich details",
        )
    }
)


def preset(name: str) -> Preset:
    """Finds the published system `name`; UserError if there is none, with the names that exist."""
    known = {**PRESETS, **VAR}
    if name not in known:
        raise UserError(f"unknown preset {name!r}; known: {', '.join(known)}")
    return known[name]
