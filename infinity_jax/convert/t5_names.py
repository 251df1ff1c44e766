"""The tensors of a Hugging Face T5 and where the encoder's numbers lie in our parameters."""

from infinity_jax.convert.links import Link, linear, same
from infinity_jax.text.t5 import T5Config

EMBEDDING = "shared.weight"
# Encoders saved by themselves have the embedding under this name, whole models may have both.
EMBEDDING_ALIAS = "encoder.embed_tokens.weight"
# Of a whole model, what the encoder does not need.
LEFT_OUT = ("decoder.", "lm_head.")


def t5_links(config: T5Config) -> list[Link]:
    """One link for each tensor of the encoder; paths of ours are those of `text.t5.T5`."""
    c = config
    first = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    embedding, positions = (c.vocabulary, c.width), (c.position_buckets, c.heads)
    links = [
        same(EMBEDDING, "embedding", embedding, embedding),
        same(first, "position_bias", positions, positions),
        same("encoder.final_layer_norm.weight", "final_norm_scale", (c.width,)),
    ]
    for layer in range(c.layers):
        links += _block_links(c, layer)
    return links


def _block_links(c: T5Config, layer: int) -> list[Link]:
    inputs, outputs = (c.width, c.heads, c.head_size), (c.heads * c.head_size, c.width)
    wide, narrow = (c.width, c.ffn_width), (c.ffn_width, c.width)
    maps = {
        "0.SelfAttention.q": ("attention/query", inputs),
        "0.SelfAttention.k": ("attention/key", inputs),
        "0.SelfAttention.v": ("attention/value", inputs),
        "0.SelfAttention.o": ("attention/out", outputs),
        "1.DenseReluDense.wi_0": ("ffn/gate", wide),
        "1.DenseReluDense.wi_1": ("ffn/up", wide),
        "1.DenseReluDense.wo": ("ffn/down", narrow),
    }
    norms = {"0.layer_norm": "attention_norm_scale", "1.layer_norm": "ffn_norm_scale"}
    prefix = f"encoder.block.{layer}.layer"
    return [
        linear(f"{prefix}.{theirs}.weight", (f"blocks/{ours}/kernel",), shape, layer=layer)
        for theirs, (ours, shape) in maps.items()
    ] + [
        same(f"{prefix}.{theirs}.weight", f"blocks/{ours}", (c.width,), layer=layer)
        for theirs, ours in norms.items()
    ]
