"""The published tokenizers' tensors and ours (docs/spec.md section 9, docs/spec_var.md section 6), in their order."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from infinity_jax.config import VECTOR, VIT, TokenizerConfig
from infinity_jax.tools.convert.links import Buffer, HasShape, Link, Statistic, conv, same
from infinity_jax.tools.convert.vit_names import vit_links

_HITS = "quantize.ema_vocab_hit_SV"


def has_inner_names(names: Iterable[str]) -> bool:
    """Tells whether a published state dict says "conv_in.conv.weight"; older files say "conv_in.weight"."""
    return "encoder.conv_in.weight" not in names


def tokenizer_links(
    config: TokenizerConfig, inner_names: bool = True, counted_scales: int = 0, code_group: int = 1
) -> list[Link | Buffer]:
    """Lists every tensor of the published tokenizer of a config.

    Args:
      config: its size.
      inner_names: False for older files of Infinity's and for VAR's, whose names lack the inner ".conv" and ".norm".
      counted_scales: of VAR's: for how many scales the file counts how often each code was chosen.
      code_group: of BSQ-ViT's: see `vit_links`.
    """
    if config.architecture == VIT:
        return vit_links(config, code_group)
    halves = [
        *_Names(config, "encoder", inner_names).encoder(),
        *_Names(config, "decoder", inner_names).decoder(),
    ]
    if config.quantizer == VECTOR:
        return [*halves, *_codebook(config, counted_scales), *_around(config)]
    # 2^(d-1), ..., 2, 1 as int64, in which 2^63 is negative.
    mask = (np.uint64(1) << np.arange(config.bits, dtype=np.uint64)[::-1]).view(np.int64)
    return [*halves, Buffer("quantizer.lfq.mask", mask), Buffer("quantize.lfq.mask", mask), *_around(config)]


def tokenizer_layout(tensors: Mapping[str, HasShape]) -> dict[str, Any]:
    """Reads the layout of a published state dict off its names and shapes: arguments of `tokenizer_links`."""
    group = tensors.get("quantize.group_basis")
    return {
        "inner_names": has_inner_names(tensors),
        "counted_scales": tensors[_HITS].shape[0] if _HITS in tensors else 0,
        "code_group": group.shape[0] if group is not None and group.shape else 1,
    }


def _codebook(c: TokenizerConfig, counted_scales: int) -> list[Link | Buffer]:
    phis = "quantize.quant_resi.qresi" + ("" if c.phis == 1 else "_ls.{}")
    links: list[Link | Buffer] = []
    if counted_scales:
        links.append(Statistic(_HITS, np.zeros((counted_scales, c.codes), np.float32)))
    for i in range(c.phis):
        kernel = (3, 3, c.bits, c.bits)
        links.append(conv(f"{phis.format(i)}.weight", "codebook/phi_kernels", kernel, layer=i))
        links.append(same(f"{phis.format(i)}.bias", "codebook/phi_biases", (c.bits,), layer=i))
    codes = (c.codes, c.bits)
    return [*links, same("quantize.embedding.weight", "codebook/codes", codes, codes)]


def _around(c: TokenizerConfig) -> list[Link | Buffer]:
    """Lists the convolutions right before and right after the quantiser."""
    if not c.latent_kernel:
        return []
    shape = (c.latent_kernel, c.latent_kernel, c.bits, c.bits)
    pairs = (("quant_conv", "latent_in"), ("post_quant_conv", "latent_out"))
    return [
        link
        for published, ours in pairs
        for link in (
            conv(f"{published}.weight", f"{ours}/kernel", shape),
            same(f"{published}.bias", f"{ours}/bias", (c.bits,)),
        )
    ]


class _Names:
    """Links of one half of the tokenizer; ours and the published names begin with `half`."""

    def __init__(self, config: TokenizerConfig, half: str, inner_names: bool) -> None:
        self.config, self.half, self.inner = config, half, inner_names
        self.widths = config.encoder_widths if half == "encoder" else config.decoder_widths
        self.pixel_channels = 3 * config.pixel_patch**2

    def encoder(self) -> list[Link]:
        c, width, levels = self.config, self.config.base_width, len(self.widths)
        links = self._conv("conv_in", "conv_in", self.pixel_channels, width)
        for level, wider in enumerate(self.widths):
            links += self._level("down", level, c.encoder_blocks, width, wider)
            if c.attention and level == levels - 1:
                links += self._level_attention("down", level, c.encoder_blocks, wider)
            width = wider
            if level < levels - 1:
                links += self._conv(f"down.{level}.downsample.conv", f"down_{level}_downsample", width, width)
        return links + self._middle(width) + self._out(width, c.bits)

    def decoder(self) -> list[Link]:
        c, top = self.config, self.widths[-1]
        links = self._conv("conv_in", "conv_in", c.bits, top) + self._middle(top)
        inputs = [*self.widths[1:], top]  # of each level: the width of the one above, which is run before it
        for level, width in enumerate(self.widths):
            links += self._level("up", level, c.decoder_blocks, inputs[level], width)
            if c.attention and level == len(self.widths) - 1:
                links += self._level_attention("up", level, c.decoder_blocks, width)
            if level > 0:
                links += self._conv(f"up.{level}.upsample.conv", f"up_{level}_upsample", width, width)
        return links + self._out(self.widths[0], self.pixel_channels)

    def _level(self, side: str, level: int, blocks: int, inputs: int, width: int) -> list[Link]:
        links = []
        for block in range(blocks):
            names = (f"{side}.{level}.block.{block}", f"{side}_{level}_block_{block}")
            links += self._block(*names, width if block else inputs, width)
        return links

    def _middle(self, width: int) -> list[Link]:
        first, second = (self._block(f"mid.block_{i + 1}", f"mid_block_{i}", width, width) for i in range(2))
        between = self._attention("mid.attn_1", "mid_attention", width) if self.config.attention else []
        return first + between + second

    def _level_attention(self, side: str, level: int, blocks: int, width: int) -> list[Link]:
        names = [(f"{side}.{level}.attn.{i}", f"{side}_{level}_attention_{i}") for i in range(blocks)]
        return [link for pair in names for link in self._attention(*pair, width)]

    def _attention(self, published: str, ours: str, width: int) -> list[Link]:
        name, path = f"{self.half}.{published}.qkv", f"{self.half}/{ours}"
        joined = [f"{path}/{part}" for part in ("query", "key", "value")]
        kernels, biases = (tuple(f"{part}/{kind}" for part in joined) for kind in ("kernel", "bias"))
        return [
            *self._norm(f"{published}.norm", f"{ours}/norm", width),
            conv(f"{name}.weight", kernels, (1, 1, width, width)),
            Link(f"{name}.bias", (3 * width,), biases, (width,)),
            *self._conv(f"{published}.proj_out", f"{ours}/out", width, width, size=1),
        ]

    def _out(self, inputs: int, outputs: int) -> list[Link]:
        return self._norm("norm_out", "norm_out", inputs) + self._conv(
            "conv_out", "conv_out", inputs, outputs
        )

    def _block(self, published: str, ours: str, inputs: int, outputs: int) -> list[Link]:
        links = [
            *self._norm(f"{published}.norm1", f"{ours}/norm1", inputs),
            *self._conv(f"{published}.conv1", f"{ours}/conv1", inputs, outputs),
            *self._norm(f"{published}.norm2", f"{ours}/norm2", outputs),
            *self._conv(f"{published}.conv2", f"{ours}/conv2", outputs, outputs),
        ]
        if inputs != outputs:
            links += self._conv(f"{published}.nin_shortcut", f"{ours}/shortcut", inputs, outputs, size=1)
        return links

    def _conv(self, published: str, ours: str, inputs: int, outputs: int, size: int = 3) -> list[Link]:
        name = f"{self.half}.{published}" + (".conv" if self.inner else "")
        path = f"{self.half}/{ours}"
        return [
            conv(f"{name}.weight", f"{path}/kernel", (size, size, inputs, outputs)),
            same(f"{name}.bias", f"{path}/bias", (outputs,)),
        ]

    def _norm(self, published: str, ours: str, width: int) -> list[Link]:
        name = f"{self.half}.{published}" + (".norm" if self.inner else "")
        return [
            same(f"{name}.weight", f"{self.half}/{ours}/scale", (width,)),
            same(f"{name}.bias", f"{self.half}/{ours}/bias", (width,)),
        ]
