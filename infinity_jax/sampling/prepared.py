"""What all scales read of the text or label, and of the parameters: made once a picture."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.runtime.sharding import on_mesh
from infinity_jax.sampling import guidance, head_bits, head_index, kv_cache
from infinity_jax.sampling.bits import LinearHead
from infinity_jax.sampling.config import SamplerConfig, SamplerInputs
from infinity_jax.tokenizer import pyramid
from infinity_jax.transformer.attention_layers import KeysValues
from infinity_jax.transformer.block import Block, Condition
from infinity_jax.transformer.transformer import Transformer


class Prepared(NamedTuple):
    """What all scales read of the text or label, and of the parameters.

    Attributes:
      condition: of N rows: B, or 2B with guidance, a picture's conditional and unconditional row interleaved.
      text_kv: keys and values of the text, each [N,H,T,head] in the type of the products' operands, of each layer;
        where layers are scanned, each [layers,N,H,T,head] of all. None without a text.
      head: the last step from hidden states to bits, or to indices.
      quantizer: the tokenizer's.
    """

    condition: Condition
    text_kv: Any
    head: LinearHead
    quantizer: pyramid.Quantizer


def prepare(
    config: SamplerConfig, params: Any, inputs: SamplerInputs, quantizer: pyramid.Quantizer | None = None
) -> Prepared:
    """Does all work on the text, once for all scales."""
    quantizer = quantizer or config.quantizer(None)
    model, block = Transformer(config.model), Block(config.model, config.schedule)
    texts = [(inputs.text_BTC, inputs.mask_BT)]
    if config.rows == 2:
        negative, negative_mask = inputs.negative_BTC, inputs.negative_mask_BT
        if negative is None or negative_mask is None:
            # The learned rows, as many as the prompt has tokens: one text for all pictures.
            empty_TC = model.apply({"params": params}, inputs.text_BTC.shape[1], method="empty_caption")
            negative, negative_mask = jnp.asarray(empty_TC)[None], inputs.mask_BT
        texts.append((negative, negative_mask))
    conditions: list[Any] = [
        model.apply({"params": params}, text, mask, method="text_condition") for text, mask in texts
    ]
    vectors_NC = jnp.concatenate([condition.vector_BC for condition in conditions])
    head_of = head_bits.difference_head if config.model.head == "bits" else head_index.index_head
    head = head_of(config.model, params, vectors_NC, config.rows)

    condition = jax.tree.map(guidance.interleave, *conditions)
    if config.model.condition == "class":
        return Prepared(condition, None, head, quantizer)
    contexts = [condition.context_BTC for condition in conditions]

    def text_kv(layer_params: Any) -> KeysValues:
        def of(context_BTC: jax.Array) -> Any:
            return block.apply({"params": layer_params}, context_BTC, method="text_keys_values")

        if on_mesh():  # it would have to move rows for a single product
            each = [of(context_BTC) for context_BTC in contexts]
        else:
            ends = np.cumsum([len(context_BTC) for context_BTC in contexts])[:-1]
            each = zip(*(jnp.split(x, ends) for x in of(jnp.concatenate(contexts))), strict=True)
        interleaved = jax.tree.map(guidance.interleave, *each)
        return jax.tree.map(lambda x: x.astype(config.model.compute_dtype), interleaved)

    kv = kv_cache.for_all(text_kv, params["blocks"])
    return Prepared(condition, kv, head, quantizer)
