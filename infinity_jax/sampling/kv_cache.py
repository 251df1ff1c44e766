"""The KV cache, written in place, and the loop over the layers of one scale.

On a TPU the layers are one compiled block, scanned: the program does not grow with depth, and the products read their
layer's weights where they lie. CPUs and GPUs would copy each layer's weights out of the stacked array before its
products, at every scale: three times the traffic of reading them. There every layer of a large model is compiled for
itself and has arrays of its own (`split`, once for all scales); it is traced once for all layers of a scale. A small
model is scanned everywhere: it is compiled sooner, and its weights are few.

The cache is allocated once, with room for all scales but the last. A scale writes its keys and values behind those of
the scales before it. Where that is and how much a scale reads is known to the compiler, so what is cached is never
joined or moved. The keys and values of the last scale, which nobody reads later, are joined to the others' for one
layer at a time and not kept.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from infinity_jax.config import TransformerConfig
from infinity_jax.runtime.devices import platform
from infinity_jax.runtime.sharding import constrain
from infinity_jax.sampling.guidance import Rows
from infinity_jax.transformer.attention_layers import KeysValues
from infinity_jax.transformer.block import Seen
from infinity_jax.transformer.kernels.storage import from_storage, to_storage

# Lengths are rounded up to it: cuDNN wants even ones.
_MULTIPLE = 8


# Bytes of all blocks' kernels, from which they get arrays of their own.
_MANY_BYTES = 2**26


def are_scanned(config: TransformerConfig) -> bool:
    """Tells whether a model's layers run as one compiled block on the platform that is traced for."""
    # Self-attention and cross-attention have four maps each, the feed-forward layer two.
    kernels = config.layers * (8 * config.width**2 + 2 * config.width * config.ffn_width)
    return platform() == "tpu" or kernels * jnp.dtype(config.compute_dtype).itemsize < _MANY_BYTES


@flax.struct.dataclass
class LayerCache:
    """What one layer keeps for later scales, in storage form, in the type of the products' operands.

    Where layers are scanned, all of a part share one, whose arrays have an axis of layers before the others.

    Attributes:
      past: keys and values of all scales so far, each [N,H,T,head], of whose T places the first ones are in use.
      updates: what each sub-layer added at the last scale that `Hooks.tokens` keeps, [N,n,C] each.
    """

    # Any: jax also builds this tree with shapes as its leaves.
    past: Any
    updates: Any = None


# Of a part of the layers: one for all of them where they are scanned, else one for each.
PartCache = LayerCache | list[LayerCache]
# (residual stream, number of the layer in the model, its place in its part, cache) -> the stream, and the cache; its
# `updates` are None where those before stay.
Layer = Callable[[jax.Array, Any, Any, LayerCache], tuple[jax.Array, LayerCache]]


def empty(config: TransformerConfig, layers: int, rows: int, tokens: int) -> PartCache:
    """Allocates the cache of a part of the layers, filled with zeros.

    Args:
      layers: in the part.
      rows: of all pictures.
      tokens: that the part runs at all scales but the last.
    """
    stacked = (layers,) if are_scanned(config) else ()
    shape = *stacked, rows, config.heads, -(-tokens // _MULTIPLE) * _MULTIPLE, config.head_size

    def one() -> LayerCache:
        x = to_storage(jnp.zeros(shape, config.compute_dtype))
        x = constrain(x, *[None] * len(stacked), "batch", "attention_heads", None, None)
        return LayerCache((x, x))

    return one() if stacked else [one() for _ in range(layers)]


def rows_of(config: TransformerConfig, caches: Any, row_N: jax.Array) -> Any:
    """Picks some rows of a batch, by number, from the caches of all parts."""
    axis = 1 if are_scanned(config) else 0
    return jax.tree.map(lambda x: jnp.take(x, row_N, axis), caches)


class Span(NamedTuple):
    """Where the keys and values of one scale go.

    Attributes:
      start: how many tokens are cached before it.
      rows: of a picture, that run.
      is_last: whether no later scale reads them.
    """

    start: int
    rows: Rows
    is_last: bool

    def remember(self, past: KeysValues, place: Any, new: KeysValues) -> tuple[Seen, KeysValues]:
        """Returns the keys and values that the scale's queries see, and the cache with this scale's.

        Args:
          past, place: the cache, and the layer's place in it, see `LayerCache`.
          new: each [rows that run,H,n,head], in storage form.
        """
        end = self.start + new[0].shape[2]
        if self.is_last:
            old = self.rows.select(_first(past, place, self.start))
            keys, values = (jnp.concatenate(each, 2) for each in zip(old, new, strict=True))
            return Seen(keys, values, end), past
        keys, values = (
            _write(x, place, self.start, x_new) for x, x_new in zip(past, self.rows.restore(new), strict=True)
        )
        past = keys, values
        is_whole = place is None and self.rows.running == self.rows.cached
        seen = past if is_whole else self.rows.select(_first(past, place, end))
        return Seen(*seen, end), past


def _write(x: jax.Array, place: Any, start: int, new: jax.Array) -> jax.Array:
    if place is None:
        return lax.dynamic_update_slice(x, new, (0, 0, start, 0))
    return lax.dynamic_update_slice(x, new[None], (place, 0, 0, start, 0))


def _first(past: KeysValues, place: Any, count: int) -> KeysValues:
    """Reads the first tokens of a layer: each [N,H,count,head]."""

    def one(x: jax.Array) -> jax.Array:
        if place is None:
            return x[:, :, :count]
        rows, heads, _, head = x.shape[1:]
        return lax.dynamic_slice(x, (place, 0, 0, 0, 0), (1, rows, heads, count, head))[0]

    return one(past[0]), one(past[1])


def split(config: TransformerConfig, stacked: Any) -> Any:
    """Gives each layer arrays of its own, in a list, from arrays in storage form with a first axis of layers.

    Layers that are scanned stay together, and in storage form.
    """
    if are_scanned(config):
        return stacked
    return [
        jax.tree.map(lambda x, i=i: from_storage(jnp.asarray(x[i])), stacked) for i in range(config.layers)
    ]


def pick(tree: Any, number: Any) -> Any:
    """Picks the arrays of one layer from what `split` or `for_all` returned."""
    if isinstance(tree, list):
        return tree[number]
    # By number, not by the scan: so layers in several parts need no copy of their parameters.
    return jax.tree.map(
        lambda x: from_storage(lax.dynamic_index_in_dim(x, number, 0, False, allow_negative_indices=False)),
        tree,
    )


def for_all(function: Callable[[Any], Any], layers: Any) -> Any:
    """Applies a function to each layer's arrays; the results lie as `split` has them."""
    if isinstance(layers, list):
        return [function(each) for each in layers]

    def stored(layer: Any) -> Any:
        return jax.tree.map(to_storage, function(jax.tree.map(from_storage, layer)))

    return lax.map(stored, layers)


def run(layer: Layer, part: range, x_NLC: jax.Array, cache: PartCache) -> tuple[jax.Array, PartCache]:
    """Runs a part of the layers one after the other; returns the residual stream after them, and their cache."""
    if isinstance(cache, list):
        kept = []
        for number, each in zip(part, cache, strict=True):
            x_NLC, later = layer(x_NLC, number, None, each)
            kept.append(LayerCache(later.past, later.updates or each.updates))
        return x_NLC, kept

    def body(carry: Any, of_layer: Any) -> tuple[Any, Any]:
        x_NLC, past = carry
        number, place, updates = of_layer
        x_NLC, each = layer(x_NLC, number, place, LayerCache(past, updates))
        return (x_NLC, each.past), each.updates

    of_layers = jnp.array(part), jnp.arange(len(part)), cache.updates
    (x_NLC, past), updates = lax.scan(body, (x_NLC, cache.past), of_layers)
    return x_NLC, LayerCache(past, updates or cache.updates)
