"""VAR's published transformer and ours (docs/spec_var.md section 6), in the published order."""

import numpy as np

from infinity_jax.config import TransformerConfig
from infinity_jax.tools.convert.links import Buffer, Link, dense, linear, same, zero_key_bias


def var_links(config: TransformerConfig) -> list[Link | Buffer]:
    """Lists every tensor of VAR's published transformer of a config."""
    c, C = config, config.width
    schedule = c.learned_schedule
    assert schedule is not None
    scale_of_token = np.array(schedule.scale_of_token, np.int64)
    hidden = np.where(scale_of_token[:, None] >= scale_of_token, 0.0, -np.inf).astype(np.float32)
    rows = (c.classes + 1, C)
    links: list[Link | Buffer] = [
        same("pos_start", "start_position", (C,), (1, 1, C)),
        same("pos_1LC", "position_embedding", (schedule.length, C), (1, schedule.length, C)),
        Buffer("lvl_1L", scale_of_token[None]),
        Buffer("attn_bias_for_masking", hidden[None, None]),
        *dense("word_embed", "embed_bits", (c.bits, C)),
        same("class_emb.weight", "label/embedding", rows, rows),
        same("lvl_embed.weight", "scale_embedding", (schedule.n_scales, C), (schedule.n_scales, C)),
    ]
    if c.adaln == "shared":
        links += dense("shared_ada_lin.1", "shared_adaln", (C, 6, C))
    for layer in range(c.layers):
        links += _block(c, f"blocks.{layer}.", layer)
    head = "index_head"
    return [
        *links,
        *dense("head_nm.ada_lin.1", f"{head}/adaln", (C, 2, C)),
        *dense("head", f"{head}/logits", (C, c.head_logits)),
    ]


def _block(c: TransformerConfig, prefix: str, layer: int) -> list[Link | Buffer]:
    C, H, F = c.width, c.heads, c.ffn_width
    of_head, attention, own = (H, c.head_size), f"{prefix}attn", "blocks/self_attention"
    joined = tuple(f"{own}/{part}/kernel" for part in ("query", "key", "value"))
    links: list[Link | Buffer] = []
    if c.adaln == "shared":
        links.append(same(f"{prefix}ada_gss", "blocks/adaln_table", (6, C), (1, 1, 6, C), layer=layer))
    if c.attention == "cosine":
        name = f"{attention}.scale_mul_1H11"
        links.append(same(name, f"{own}/log_scale", (H,), (1, H, 1, 1), layer=layer))
    links += [
        same(f"{attention}.q_bias", f"{own}/query/bias", of_head, layer=layer),
        same(f"{attention}.v_bias", f"{own}/value/bias", of_head, layer=layer),
        zero_key_bias(f"{attention}.zero_k_bias", C),
        linear(f"{attention}.mat_qkv.weight", joined, (C, *of_head), layer=layer),
        *dense(f"{attention}.proj", f"{own}/out", (C, C), layer),
        *dense(f"{prefix}ffn.fc1", "blocks/ffn/fc1", (C, F), layer),
        *dense(f"{prefix}ffn.fc2", "blocks/ffn/fc2", (F, C), layer),
    ]
    if c.adaln == "own":
        links += dense(f"{prefix}ada_lin.1", "blocks/adaln", (C, 6, C), layer)
    return links
