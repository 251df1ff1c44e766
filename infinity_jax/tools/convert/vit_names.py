"""BSQ-ViT's published tokenizer and ours (docs/spec_bsq_vit.md section 5), in the published order."""

import numpy as np

from infinity_jax.config import VECTOR, TokenizerConfig
from infinity_jax.tools.convert.links import Buffer, Link, dense, linear, same


def vit_links(config: TokenizerConfig, code_group: int = 1) -> list[Link | Buffer]:
    """Lists every tensor of the published tokenizer of a config whose architecture is "vit".

    Args:
      code_group: of bits: how many of them have an index of their own in the release, which stores what each is worth.
    """
    c, patch = config, 3 * config.pixel_patch**2
    (encoder,), (decoder,) = c.encoder_widths, c.decoder_widths
    pixels = patch * (2 if c.laplace else 1)
    return [
        _positions(c, "encoder", encoder),
        linear("encoder.conv1.weight", ("encoder/patches/kernel",), (patch, encoder)),
        *_body(c, "encoder", encoder),
        _positions(c, "decoder", decoder),
        *dense("decoder.ffn.0", "decoder/fc1", (decoder, c.hidden)),
        *dense("decoder.conv_out", "decoder/fc2", (c.hidden, pixels)),
        *_body(c, "decoder", decoder),
        *_quantizer(c, code_group),
        *dense("quant_embed", "encoder/out", (encoder, c.bits)),
        *dense("post_quant_embed", "decoder/in", (c.bits, decoder)),
    ]


def _quantizer(c: TokenizerConfig, code_group: int) -> list[Link | Buffer]:
    if c.quantizer == VECTOR:
        codes = (c.codes, c.bits)
        return [same("quantize.embedding.weight", "codebook/codes", codes, codes)]
    return [
        Buffer(name, 2 ** np.arange(bits, dtype=np.int64)[::-1])
        for name, bits in (("quantize.basis", c.bits), ("quantize.group_basis", code_group))
    ]


def _positions(c: TokenizerConfig, half: str, width: int) -> Link:
    shape = ((c.side // c.pixel_patch) ** 2, width)
    return same(f"{half}.positional_embedding", f"{half}/body/positions", shape, shape)


def _body(c: TokenizerConfig, half: str, width: int) -> list[Link]:
    layers, heads = (
        (c.encoder_blocks, c.heads_of_halves[0])
        if half == "encoder"
        else (c.decoder_blocks, c.heads_of_halves[1])
    )
    of_head, ours = (heads, width // heads), f"{half}/body/blocks"
    links = _norm(f"{half}.ln_pre", f"{half}/body/norm_in", width)
    for layer in range(layers):
        block = f"{half}.transformer.resblocks.{layer}"
        joined, joined_shape = f"{block}.attn.in_proj_", (3, *of_head)
        links += [
            *_norm(f"{block}.ln_1", f"{ours}/norm1", width, layer),
            linear(f"{joined}weight", (f"{ours}/joined/kernel",), (width, *joined_shape), layer=layer),
            same(f"{joined}bias", f"{ours}/joined/bias", joined_shape, layer=layer),
            *dense(f"{block}.attn.out_proj", f"{ours}/out", (width, width), layer),
            *_norm(f"{block}.ln_2", f"{ours}/norm2", width, layer),
            *dense(f"{block}.mlp.c_fc", f"{ours}/fc1", (width, 4 * width), layer),
            *dense(f"{block}.mlp.c_proj", f"{ours}/fc2", (4 * width, width), layer),
        ]
    return [*links, *_norm(f"{half}.ln_post", f"{half}/body/norm_out", width)]


def _norm(published: str, ours: str, width: int, layer: int | None = None) -> list[Link]:
    names = (("weight", "scale"), ("bias", "bias"))
    return [same(f"{published}.{theirs}", f"{ours}/{own}", (width,), layer=layer) for theirs, own in names]
