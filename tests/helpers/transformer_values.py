"""What a transformer computes on the way to its logits, by the names that the releases' files have for it."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.config import TransformerConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.transformer.block import Block
from infinity_jax.transformer.transformer import Transformer

# Methods of a block, by what the files call their results.
_OF_BLOCK = {
    "self_attention.merge": "sa_out",
    "cross_attention.__call__": "ca_out",
    "ffn.__call__": "ffn_out",
    "adaln.__call__": "ada",
}


@contextlib.contextmanager
def recorded_calls() -> Iterator[dict[str, tuple[Any, Any]]]:
    """Inside, every call of a module's method is noted: "path/of/module.method" -> (arguments, result)."""
    calls: dict[str, tuple[Any, Any]] = {}

    def note(next_call, args, kwargs, context):
        result = next_call(*args, **kwargs)
        calls["/".join(context.module.path) + "." + context.method_name] = args, result
        return result

    with nn.intercept_methods(note):
        yield calls


def values_on_the_way(
    config: TransformerConfig, params: Any, schedule: ScaleSchedule, text: Any, inputs_BLd: Any
) -> dict[str, Any]:
    """Runs the parts one after the other, and keeps what each gives at all positions; `text` is features and mask."""
    model = Transformer(config)

    @jax.jit
    def before_blocks(params, text, inputs_BLd):
        with recorded_calls() as calls:
            condition = model.apply({"params": params}, *text, method="text_condition")
        parts: list[Any] = [None, *jnp.split(inputs_BLd, np.array(schedule.offsets[2:-1]) - 1, 1)]
        embed = functools.partial(model.apply, {"params": params}, condition, method="embed")
        x_BLC = jnp.concatenate([jnp.asarray(embed(part, k)) for k, part in enumerate(parts)], 1)
        pooled = calls["text/pool.__call__"][0][0] if config.condition == "text" else None
        return condition, pooled, x_BLC

    @jax.jit
    def block(layer_params, x_BLC, condition):
        with recorded_calls() as calls:
            x_BLC, _ = Block(config, schedule).apply({"params": layer_params}, x_BLC, None, condition)
        return x_BLC, {name: calls[call][1] for call, name in _OF_BLOCK.items() if call in calls}

    @jax.jit
    def head(params, x_BLC, condition):
        with recorded_calls() as calls:
            model.apply({"params": params}, x_BLC, condition, method="head")
        (name,) = (name for name in calls if name.endswith("_head/logits.__call__"))
        return calls[name][0][0]

    condition, normed_BTC, x_BLC = before_blocks(params, text, inputs_BLd)
    values = {"cond_BD": condition.vector_BC, "x_before_block0": x_BLC}
    if normed_BTC is not None:
        tokens = text[1]
        values["text_normed"] = np.asarray(normed_BTC)[tokens]
        values["ca_kv"] = np.asarray(condition.context_BTC)[tokens]
    if condition.adaln_B6C is not None:
        values["gss"] = condition.adaln_B6C[:, None]
    for i in range(config.layers):
        layer_params = jax.tree.map(lambda x, i=i: x[i], params["blocks"])
        x_BLC, parts = block(layer_params, x_BLC, condition)
        values |= {f"block{i}_{name}": value for name, value in parts.items()} | {f"after_block{i}": x_BLC}
    return values | {"head_nm_out": head(params, x_BLC, condition)}
