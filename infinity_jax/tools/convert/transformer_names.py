"""The published transformer's tensors and ours (docs/spec.md section 9), in the published order."""

import re
from collections.abc import Iterable

from infinity_jax.config import LEARNED_WITH_SCALES, TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.tools.convert.links import Buffer, Link, dense, linear, same, zero_key_bias
from infinity_jax.tools.convert.var_names import var_links
from infinity_jax.transformer.transformer import SCALE_ROWS

CAPTION_TABLE = "cfg_uncond"
_CHUNK = re.compile(r"block_chunks\.(\d+)\.module\.")


def chunks_of(names: Iterable[str]) -> int:
    """Counts the chunks that the blocks of a published state dict are grouped in; 0 if they are "blocks.0", ..."""
    return max((int(match[1]) + 1 for match in map(_CHUNK.match, names) if match), default=0)


def is_var(config: TransformerConfig) -> bool:
    """Tells whether VAR's release has names for the parameters of a config."""
    return (
        config.condition == "class" and config.codes > 0 and config.positions.startswith(LEARNED_WITH_SCALES)
    )


def transformer_links(
    config: TransformerConfig, chunks: int, caption_rows: int | None = None
) -> list[Link | Buffer]:
    """Lists every tensor of the published transformer of a config.

    Those of VAR's, by `var_names`, are neither in chunks nor have a caption.

    Args:
      config: its size.
      chunks: layer i is "block_chunks.{i // n}.module.{i % n}" with n = layers / chunks; 0: it is "blocks.{i}".
      caption_rows: rows of the published table of the empty caption, if not the config's text_length.
    Raises:
      UserError: the layers cannot be grouped so, or the model has another head or other positions than the
        release.
    """
    if is_var(config):
        return var_links(config)
    if config.head != "bits":
        raise UserError(
            f"the release has names for the weights of head 'bits' alone; this model's head is {config.head!r}. Use "
            "`infinity-jax export` to share it"
        )
    if config.positions != "rope2d":
        raise UserError(
            f"the release has no name for learned positions, and this model's are {config.positions!r}. Use "
            "`infinity-jax export` to share it"
        )
    if chunks and config.layers % chunks:
        raise UserError(
            f"the blocks are in {chunks} chunks, but the config's {config.layers} layers cannot be grouped so; "
            "is it another model size?"
        )
    links = _outside(config, caption_rows or config.text_length)
    for layer in range(config.layers):
        if chunks:
            chunk, position = divmod(layer, config.layers // chunks)
            links += _block(config, f"block_chunks.{chunk}.module.{position}.", layer)
        else:
            links += _block(config, f"blocks.{layer}.", layer)
    return links


def _outside(c: TransformerConfig, caption_rows: int) -> list[Link | Buffer]:
    C, T, pool = c.width, c.text_channels, c.pool_heads
    caption = ("text/empty_caption",), (c.text_length, T)
    of_head = (pool, C // pool)
    sos = "text_proj_for_sos.ca"
    pooled = ("text/pool/key/kernel", "text/pool/value/kernel")
    return [
        Link(CAPTION_TABLE, (caption_rows, T), *caption, layout="rows"),
        same("pos_start", "start_position", (C,), (1, 1, C)),
        same("text_norm.weight", "text/norm_scale", (T,)),
        same(f"{sos}.mat_q", "text/pool/query", of_head, (1, *of_head)),
        same(f"{sos}.v_bias", "text/pool/value/bias", of_head),
        zero_key_bias(f"{sos}.zero_k_bias", C),
        linear(f"{sos}.mat_kv.weight", pooled, (T, *of_head)),
        *dense(f"{sos}.proj", "text/pool/out", (C, C)),
        *dense("text_proj_for_ca.0", "text/fc1", (T, C)),
        *dense("text_proj_for_ca.2", "text/fc2", (C, C)),
        same("lvl_embed.weight", "scale_embedding", (SCALE_ROWS, C), (SCALE_ROWS, C)),
        *dense("word_embed", "embed_bits", (c.bits, C)),
        *dense("shared_ada_lin.1", "shared_adaln", (C, 6, C)),
        *dense("head_nm.ada_lin.1", "bit_head/adaln", (C, 2, C)),
        *dense("head", "bit_head/logits", (C, 2 * c.bits)),
    ]


def _block(c: TransformerConfig, prefix: str, layer: int) -> list[Link | Buffer]:
    C, H, F = c.width, c.heads, c.ffn_width
    of_head = (H, c.head_size)
    sa, ca, mlp = (prefix + part for part in ("sa", "ca", "ffn"))
    own, cross = "blocks/self_attention", "blocks/cross_attention"
    joined = tuple(f"{own}/{part}/kernel" for part in ("query", "key", "value"))
    crossed = (f"{cross}/key/kernel", f"{cross}/value/kernel")
    return [
        same(f"{prefix}ada_gss", "blocks/adaln_table", (6, C), (1, 1, 6, C), layer=layer),
        same(f"{sa}.scale_mul_1H11", f"{own}/log_scale", (H,), (1, H, 1, 1), layer=layer),
        same(f"{sa}.q_bias", f"{own}/query/bias", of_head, layer=layer, halved=1),
        same(f"{sa}.v_bias", f"{own}/value/bias", of_head, layer=layer),
        zero_key_bias(f"{sa}.zero_k_bias", C),
        linear(f"{sa}.mat_qkv.weight", joined, (C, *of_head), layer=layer, halved=2),
        *dense(f"{sa}.proj", f"{own}/out", (C, C), layer),
        same(f"{ca}.v_bias", f"{cross}/value/bias", of_head, layer=layer),
        zero_key_bias(f"{ca}.zero_k_bias", C),
        *dense(f"{ca}.mat_q", f"{cross}/query", (C, *of_head), layer),
        linear(f"{ca}.mat_kv.weight", crossed, (C, *of_head), layer=layer),
        *dense(f"{ca}.proj", f"{cross}/out", (C, C), layer),
        *dense(f"{mlp}.fc1", "blocks/ffn/fc1", (C, F), layer),
        *dense(f"{mlp}.fc2", "blocks/ffn/fc2", (F, C), layer),
        same(f"{prefix}ca_norm.weight", "blocks/cross_norm_scale", (C,), layer=layer),
        same(f"{prefix}ca_norm.bias", "blocks/cross_norm_bias", (C,), layer=layer),
    ]
