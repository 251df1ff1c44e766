"""The published PyTorch transformer's state dict as our parameters (spec section 9)."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from infinity_jax.config import TransformerConfig
from infinity_jax.errors import UserError

_BLOCK = re.compile(r"(?:block_chunks\.(\d+)\.module\.(\d+)|blocks\.(\d+))\.(.+)")


def _outside_names(c: TransformerConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Published name -> (our path, our shape) of what is outside the blocks. Published linear maps are [out, in].

    Published keys and values are one map; "key+value" stands for two of our paths along axis 1 of the shape.
    """
    C, T, pool = c.width, c.text_channels, c.pool_heads
    return {
        "cfg_uncond": ("text/empty_caption", (c.text_length, T)),
        "pos_start": ("start_position", (C,)),
        "text_norm.weight": ("text/norm_scale", (T,)),
        "text_proj_for_sos.ca.mat_q": ("text/pool/query", (pool, C // pool)),
        "text_proj_for_sos.ca.v_bias": ("text/pool/value/bias", (pool, C // pool)),
        "text_proj_for_sos.ca.mat_kv.weight": ("text/pool/key+value/kernel", (T, 2, pool, C // pool)),
        "text_proj_for_sos.ca.proj.weight": ("text/pool/out/kernel", (C, C)),
        "text_proj_for_sos.ca.proj.bias": ("text/pool/out/bias", (C,)),
        "text_proj_for_ca.0.weight": ("text/fc1/kernel", (T, C)),
        "text_proj_for_ca.0.bias": ("text/fc1/bias", (C,)),
        "text_proj_for_ca.2.weight": ("text/fc2/kernel", (C, C)),
        "text_proj_for_ca.2.bias": ("text/fc2/bias", (C,)),
        "lvl_embed.weight": ("scale_embedding", (15, C)),
        "word_embed.weight": ("embed_bits/kernel", (c.bits, C)),
        "word_embed.bias": ("embed_bits/bias", (C,)),
        "shared_ada_lin.1.weight": ("shared_adaln/kernel", (C, 6, C)),
        "shared_ada_lin.1.bias": ("shared_adaln/bias", (6, C)),
        "head_nm.ada_lin.1.weight": ("bit_head/adaln/kernel", (C, 2, C)),
        "head_nm.ada_lin.1.bias": ("bit_head/adaln/bias", (2, C)),
        "head.weight": ("bit_head/logits/kernel", (C, 2 * c.bits)),
        "head.bias": ("bit_head/logits/bias", (2 * c.bits,)),
    }


def _block_names(c: TransformerConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The same for one block."""
    C, H, d, F = c.width, c.heads, c.head_size, c.ffn_width
    return {
        "ada_gss": ("adaln_table", (6, C)),
        "sa.scale_mul_1H11": ("self_attention/log_scale", (H,)),
        "sa.q_bias": ("self_attention/query/bias", (H, d)),
        "sa.v_bias": ("self_attention/value/bias", (H, d)),
        "sa.mat_qkv.weight": ("self_attention/query+key+value/kernel", (C, 3, H, d)),
        "sa.proj.weight": ("self_attention/out/kernel", (C, C)),
        "sa.proj.bias": ("self_attention/out/bias", (C,)),
        "ca.v_bias": ("cross_attention/value/bias", (H, d)),
        "ca.mat_q.weight": ("cross_attention/query/kernel", (C, H, d)),
        "ca.mat_q.bias": ("cross_attention/query/bias", (H, d)),
        "ca.mat_kv.weight": ("cross_attention/key+value/kernel", (C, 2, H, d)),
        "ca.proj.weight": ("cross_attention/out/kernel", (C, C)),
        "ca.proj.bias": ("cross_attention/out/bias", (C,)),
        "ca_norm.weight": ("cross_norm_scale", (C,)),
        "ca_norm.bias": ("cross_norm_bias", (C,)),
        "ffn.fc1.weight": ("ffn/fc1/kernel", (C, F)),
        "ffn.fc1.bias": ("ffn/fc1/bias", (F,)),
        "ffn.fc2.weight": ("ffn/fc2/kernel", (F, C)),
        "ffn.fc2.bias": ("ffn/fc2/bias", (C,)),
    }


def _to_ours(name: str, value: np.ndarray, path: str, shape: tuple[int, ...]) -> np.ndarray:
    published = (int(np.prod(shape[1:])), shape[0]) if path.endswith("kernel") else None
    if (published is not None and value.shape != published) or value.size != int(np.prod(shape)):
        raise UserError(
            f"{name} has shape {value.shape}, which does not fit {path} {shape}; is it another model size?"
        )
    value = value.T if path.endswith("kernel") else value
    return np.ascontiguousarray(value.reshape(shape), np.float32)


def _put(tree: dict[str, Any], path: str, value: np.ndarray, split_axis: int = 1):
    *parents, leaf = path.split("/")
    joined = next((i for i, part in enumerate(parents) if "+" in part), None)
    if joined is not None:
        for i, name in enumerate(parents[joined].split("+")):
            part = np.ascontiguousarray(np.take(value, i, split_axis))
            _put(tree, "/".join([*parents[:joined], name, *parents[joined + 1 :], leaf]), part)
        return
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[leaf] = value


def transformer_from_torch(state_dict: Mapping[str, np.ndarray], config: TransformerConfig) -> dict[str, Any]:
    """Parameters of `Transformer(config)` from a flat published state dict.

    Args:
      state_dict: name -> array of any float type. Blocks may be chunked ("block_chunks.i.module.j") or not.
    Returns:
      nested dict of float32 NumPy arrays; blocks stacked over layers.
    Raises:
      UserError: a tensor is missing, unknown, given twice, or has another shape.
    """
    outside, inside = _outside_names(config), _block_names(config)
    chunks = {int(m[1]) for m in map(_BLOCK.match, state_dict) if m and m[1] is not None}
    layers_per_chunk = config.layers // max(1, len(chunks))
    params: dict[str, Any] = {}
    layers: dict[str, dict[int, np.ndarray]] = {name: {} for name in inside}
    for name, value in state_dict.items():
        if name.endswith("zero_k_bias"):  # a buffer of zeros
            continue
        match = _BLOCK.match(name)
        if match is None and name in outside:
            _put(params, outside[name][0], _to_ours(name, value, *outside[name]))
        elif match is not None and match[4] in inside:
            layer = (
                int(match[3]) if match[3] is not None else int(match[1]) * layers_per_chunk + int(match[2])
            )
            if layer in layers[match[4]]:
                raise UserError(
                    f"{name} gives layer {layer} a second time; the file mixes two layouts of blocks"
                )
            layers[match[4]][layer] = _to_ours(name, value, *inside[match[4]])
        else:
            raise UserError(
                f"unknown tensor {name!r} in the transformer's state dict; is it another kind of model?"
            )
    missing = sorted(name for name in outside if name not in state_dict)
    for name, stack in layers.items():
        if sorted(stack) != list(range(config.layers)):
            missing.append(f"{name} of {config.layers} layers (found {len(stack)})")
            continue
        _put(params, "blocks/" + inside[name][0], np.stack([stack[i] for i in range(config.layers)]), 2)
    if missing:
        raise UserError(
            f"the transformer's state dict lacks {len(missing)} tensors: {', '.join(missing[:8])}"
        )
    return params
