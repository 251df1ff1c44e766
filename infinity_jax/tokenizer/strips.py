"""The decoder of large batches, a few pictures after the other, and of large pictures, in strips of rows.

With strips only one or two whole maps are in memory at a time. The statistics of GroupNorm are those of the whole map,
so only the order of sums differs from `autoencoder.Decoder`: there are no seams. A residual block writes its result
from top to bottom over a map that is read for the last time; the row above a strip that a 3x3 kernel still needs is
carried along. What is too large to be held is computed again where it is read: the hidden map of a block, or the map
between a doubling of the size and the block after it.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from infinity_jax.config import VIT, TokenizerConfig
from infinity_jax.runtime.devices import on_each_device
from infinity_jax.runtime.sharding import traced_layout, tracing
from infinity_jax.tokenizer import group_norm, strip_rows, vit
from infinity_jax.tokenizer.autoencoder import decoder_layers, from_patches
from infinity_jax.tokenizer.convolution import Arithmetic, before_doubling, convolve, convolve_doubled
from infinity_jax.tokenizer.decoder_memory import Memory
from infinity_jax.tokenizer.group_norm import Moments, Norm
from infinity_jax.tokenizer.halves import networks_of
from infinity_jax.tokenizer.strip_rows import Row

Shape = tuple[int, ...]


def largest_map(config: TokenizerConfig, size: tuple[int, int], maps: str) -> int:
    """Counts the bytes of the decoder's largest map, of dtype `maps`, for one picture of `size` tokens."""
    if config.architecture == VIT:
        most = vit.largest_map_channels(config, math.prod(size))
    else:
        most = max(layer.width * 4**layer.doublings for layer in decoder_layers(config)[:-1])
    return most * math.prod(size) * jnp.dtype(maps).itemsize


def needed(config: TokenizerConfig, shape: Shape, arithmetic: Arithmetic, memory: Memory) -> bool:
    """Tells whether codes [B,h,w,bits] are more on one device than the plain decoder should take at once there."""
    layout = traced_layout.get()
    parts = layout.batch_parts if layout is not None else 1
    pictures = shape[0] // parts if shape[0] % parts == 0 else shape[0]
    return pictures * largest_map(config, (shape[1], shape[2]), arithmetic.maps) > memory.plain


def decode(
    config: TokenizerConfig,
    params: Any,
    codes_BHWd: Float[Array, "B h w d"],
    arithmetic: Arithmetic,
    memory: Memory,
) -> Float[Array, "B H W 3"]:
    """Decodes float32 codes as `autoencoder.Decoder` with the parameters `params` does: float32, not clipped."""
    leaves, tree = jax.tree.flatten(jax.tree.map(jnp.asarray, params))
    largest = largest_map(config, (codes_BHWd.shape[1], codes_BHWd.shape[2]), arithmetic.maps)
    # With attention each place sees all others, so that there are no strips: one picture after the other.
    whole_maps = config.attention or config.architecture == VIT
    at_once = _plain if whole_maps or largest <= memory.plain else _in_strips

    def on_device(codes_BHWd: jax.Array, *leaves: jax.Array) -> jax.Array:
        batch = len(codes_BHWd)
        together = max(
            n for n in range(1, batch + 1) if batch % n == 0 and n * largest <= max(memory.plain, largest)
        )
        some = functools.partial(at_once, config, jax.tree.unflatten(tree, leaves), arithmetic, memory)
        image = lax.map(some, codes_BHWd.reshape(-1, together, *codes_BHWd.shape[1:]))
        return image.reshape(batch, *image.shape[2:])

    split = ("batch", None, None, None)
    whole = [(None,) * leaf.ndim for leaf in leaves]
    return on_each_device(on_device, [split, *whole], split)(codes_BHWd, *leaves)


def _plain(
    config: TokenizerConfig, params: PyTree, arithmetic: Arithmetic, _: Memory, codes_BHWd: jax.Array
) -> jax.Array:
    with tracing(None):  # within one device there is no mesh
        decoder: Any = networks_of(config)[1](config, parent=None)
        return decoder.apply({"params": params}, codes_BHWd, arithmetic)


def _in_strips(
    config: TokenizerConfig, params: PyTree, arithmetic: Arithmetic, memory: Memory, codes_BHWd: jax.Array
) -> jax.Array:
    strips = _Strips(arithmetic, memory)
    params = _before_the_strips(config, params, arithmetic.operands)
    first, *middle, last = decoder_layers(config)
    x_BHWC = strips.convolve(jnp.pad(codes_BHWd, ((0, 0), (1, 1), (0, 0), (0, 0))), params[first.name])
    x: Map = HeldMap.of(strip_rows.as_stored(x_BHWC), group_norm.moments(x_BHWC))
    for layer, following in itertools.pairwise([*middle, last]):
        if layer.kind == "block":
            x = strips.residual_block(x, params[layer.name])
        else:
            x = strips.upsample(x, params[layer.name], following.width)
    image = strips.normalised_convolution(x, params["norm_out"], params[last.name], jnp.float32)
    return from_patches(image.stored, config.pixel_patch)


def _before_the_strips(config: TokenizerConfig, params: PyTree, operands: str) -> PyTree:
    """Does once what is the same for each strip: kernels get their taps joined, and the type of the operands."""

    def kernel_of(name: str, leaf: jax.Array) -> jax.Array:
        return (before_doubling(leaf) if name in doubling else leaf).astype(operands)

    doubling = {layer.name for layer in decoder_layers(config) if layer.kind == "upsample"}
    return {
        name: jax.tree.map(lambda leaf, n=name: kernel_of(n, leaf) if leaf.ndim == 4 else leaf, layer)
        for name, layer in params.items()
    }


@dataclasses.dataclass(frozen=True)
class Map:
    """A map [B,H,W,C] that is computed again wherever it is read, if it is not a `HeldMap`.

    Attributes:
      read: some of its rows.
    """

    shape: Shape
    moments: Moments
    read: strip_rows.Read


@dataclasses.dataclass(frozen=True)
class HeldMap(Map):
    """A map in memory, as `strip_rows.as_stored` makes it."""

    stored: jax.Array

    @classmethod
    def of(cls, stored_BHWC: jax.Array, moments: Moments) -> "HeldMap":
        """Makes a held map of its stored form and its moments."""
        return cls(stored_BHWC.shape, moments, functools.partial(strip_rows.read, stored_BHWC), stored_BHWC)


# (first row, rows carried from the strip above, the map that is written) -> (a strip, rows for the strip below)
Strip = Callable[[Any, Any, Any], tuple[jax.Array, Any]]


@dataclasses.dataclass(frozen=True)
class _Strips:
    arithmetic: Arithmetic
    memory: Memory

    @property
    def dtype(self) -> Any:
        """The dtype of maps; what is convolved has `arithmetic.operands`."""
        return jnp.dtype(self.arithmetic.maps)

    def activated(self, x_BnWC: jax.Array, norm: Norm, inside: Row) -> jax.Array:
        return strip_rows.activated(x_BnWC, norm, inside, self.arithmetic.operands)

    def residual_block(self, x: Map, params: PyTree) -> HeldMap:
        """Runs a `ResidualBlock`: over x if that is held and as wide as the result, else over the hidden map."""
        shape = (*x.shape[:3], params["conv2"]["bias"].shape[0])
        over_x = x if isinstance(x, HeldMap) and "shortcut" not in params else None
        if over_x is not None and not self.fit(x.shape, shape):
            return self.over_input(over_x, params)
        h = self.normalised_convolution(x, params["norm1"], params["conv1"], self.dtype)
        return self.second_half(x, h, params, over_x or h)

    def normalised_convolution(
        self, x: Map, norm_params: PyTree, params: PyTree, dtype: DTypeLike
    ) -> HeldMap:
        """Applies GroupNorm, swish and a 3x3 convolution, as a new map."""
        shape = (*x.shape[:3], params["bias"].shape[0])
        n = self.rows_per_strip(x.shape[:3], max(x.shape[3], shape[3]))
        new = strip_rows.empty(shape, dtype, x.moments)
        return self.sweep(self.first_half(x, norm_params, params, n, dtype), n, self.nothing_above(x), new)

    def first_half(self, x: Map, norm_params: PyTree, params: PyTree, n: int, dtype: DTypeLike) -> Strip:
        norm = group_norm.norm(x.moments, norm_params)

        def strip(first: Row, above: Any, _: Any) -> tuple[jax.Array, Any]:
            new = self.activated(x.read(first, n, 1), norm, x.shape[1] - first)
            known = jnp.concatenate([above, new], 1)
            return self.convolve(known, params).astype(dtype), known[:, -2:-1]

        return strip

    def second_half(self, x: Map, h: HeldMap, params: PyTree, over: HeldMap) -> HeldMap:
        """Writes a block's result over x or over its hidden map h."""
        n = self.rows_per_strip(x.shape[:3], max(x.shape[3], h.shape[3]))
        norm2 = group_norm.norm(h.moments, params["norm2"])

        def strip(first: Row, above: Any, written: Any) -> tuple[jax.Array, Any]:
            read_written = functools.partial(strip_rows.read, written)
            read_x, read_h = (x.read, read_written) if over is h else (read_written, h.read)
            new = self.activated(read_h(first, n, 1), norm2, h.shape[1] - first)
            known = jnp.concatenate([above, new], 1)
            skip = read_x(first, n, 0)
            if "shortcut" in params:
                skip = self.convolve(skip, params["shortcut"])
            return skip + self.convolve(known, params["conv2"]), known[:, -2:-1]

        return self.sweep(strip, n, self.nothing_above(h), over.stored)

    def over_input(self, x: HeldMap, params: PyTree) -> HeldMap:
        """Writes a block's result over x without holding the hidden map, computed for its moments and once more."""
        height, n = x.shape[1], self.rows_per_strip(x.shape[:3], x.shape[3])
        hidden = self.first_half(x, params["norm1"], params["conv1"], n, self.dtype)
        moments = self.moments(hidden, n, self.nothing_above(x), height)
        norm1, norm2 = group_norm.norm(x.moments, params["norm1"]), group_norm.norm(moments, params["norm2"])

        def activated_hidden(known: jax.Array, first: Row) -> jax.Array:
            h = self.convolve(known, params["conv1"])
            return self.activated(h, norm2, height - first)

        def strip(first: Row, above: Any, written: Any) -> tuple[jax.Array, Any]:
            # Hidden rows one further down than the result: those above are carried.
            rows = strip_rows.read(written, first, n, 2)
            new = self.activated(rows, norm1, height - first)
            known = jnp.concatenate([above, activated_hidden(new, first + 1)], 1)
            result = strip_rows.read(written, first, n, 0) + self.convolve(known, params["conv2"])
            return result, known[:, -2:]

        top = self.activated(x.read(0, 1, 1), norm1, height)
        top = activated_hidden(jnp.concatenate([self.nothing_above(x), top], 1), 0)
        return self.sweep(strip, n, jnp.concatenate([self.nothing_above(x), top], 1), x.stored)

    def upsample(self, z: Map, params: PyTree, next_width: int) -> Map:
        """Doubles the size, with a 3x3 convolution; held if there is room for the next block's map too."""
        shape = (z.shape[0], 2 * z.shape[1], 2 * z.shape[2], z.shape[3])
        n = self.rows_per_strip(shape[:3], shape[3])

        def read(first: Row, count: int, below: int) -> jax.Array:
            known = strip_rows.read_around(z.read, z.shape[1], first // 2, count // 2, 1 + (below + 1) // 2)
            doubled = convolve_doubled(known, params["kernel"], self.arithmetic, (0, 0))
            return (doubled + params["bias"].astype(self.dtype))[:, : count + below]

        def strip(first: Row, above: Any, _: Any) -> tuple[jax.Array, Any]:
            return read(first, n, 0), above

        if self.fit(shape, (*shape[:3], next_width)):
            return self.sweep(strip, n, None, strip_rows.empty(shape, self.dtype, z.moments))
        return Map(shape, self.moments(strip, n, None, shape[1]), read)

    def sweep(self, strip: Strip, n: int, above: Any, written: jax.Array) -> HeldMap:
        """Writes strips of n rows, from top to bottom, over `written`."""

        def step(carried: Any, first: Row) -> tuple[Any, Moments]:
            above, written = carried
            new, above = strip(first, above, written)
            written = lax.dynamic_update_slice_in_dim(written, strip_rows.as_stored(new), first, 1)
            return (above, written), group_norm.moments(new)

        (_, written), by_strip = lax.scan(step, (above, written), jnp.arange(0, written.shape[1], n))
        return HeldMap.of(written, group_norm.joined(by_strip))

    def moments(self, strip: Strip, n: int, above: Any, height: int) -> Moments:
        """Computes the moments of the map that `sweep` would write."""

        def step(above: Any, first: Row) -> tuple[Any, Moments]:
            new, above = strip(first, above, None)
            return above, group_norm.moments(new)

        return group_norm.joined(lax.scan(step, above, jnp.arange(0, height, n))[1])

    def nothing_above(self, x: Map) -> jax.Array:
        """Makes the row above the first, after activation: zeros."""
        return jnp.zeros((x.shape[0], 1, *x.shape[2:]), self.arithmetic.operands)

    def rows_per_strip(self, shape: Shape, channels: int) -> int:
        """Finds the most rows of a map [B,H,W] that divide its height and fit into a strip; even if the height is."""
        least = 2 - shape[1] % 2
        most = self.memory.strip // (shape[0] * shape[2] * channels * self.dtype.itemsize)
        divisors = (n for n in range(least, shape[1] + 1, least) if shape[1] % n == 0)
        return max(n for n in divisors if n <= max(most, least))

    def fit(self, *shapes: Shape) -> bool:
        """Tells whether maps may be held at the same time."""
        return sum(map(math.prod, shapes)) * self.dtype.itemsize <= self.memory.held

    def convolve(self, known: jax.Array, params: PyTree) -> jax.Array:
        """Convolves rows with those above and below, as `nn.Conv`."""
        around = params["kernel"].shape[1] // 2
        x = convolve(known, params["kernel"], self.arithmetic, (0, 0), (around, around))
        return x + params["bias"].astype(self.dtype)
