"""Pictures through a trained tokenizer: to bits and back, in batches of one size."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from infinity_jax import scales
from infinity_jax.checkpoints.trained import TrainedTokenizer
from infinity_jax.data import pictures
from infinity_jax.metrics.network_weights import filled_batches
from infinity_jax.tokenizer import indices, pyramid
from infinity_jax.tokenizer.model import Tokenizer, quantizer_of, through_bits

_MOST_PICTURES, _MOST_PIXELS = 32, 1 << 20  # of a batch

# One array bool [N,h_k,w_k,d] for each scale.
Bits = tuple[np.ndarray, ...]


class ThroughBits:
    """A tokenizer on square pictures of its own side, with the scales that it is used with.

    Attributes:
      side: height and width of the pictures in pixels.
      bits: of a token; of a tokenizer of codes those of a code's number.
      schedule: these scales, in tokens of the tokenizer.
      batch_size: pictures at once, fewer of large ones for their memory.
    """

    def __init__(self, tokenizer: TrainedTokenizer):
        codes = tokenizer.config.codes
        self.side = tokenizer.side
        self.bits = (codes - 1).bit_length() if codes else tokenizer.config.bits
        self.schedule = scales.make_schedule(tokenizer.scales).times(tokenizer.config.patchify)
        self._params = tokenizer.params
        self.batch_size = max(1, min(_MOST_PICTURES, _MOST_PIXELS // self.side**2))
        config, schedule = tokenizer.config, self.schedule
        module: Any = Tokenizer(tokenizer.config)

        def there_and_back(params, image_BHW3):
            image, quantised = through_bits(module, params, image_BHW3, schedule)
            if codes:
                return image, tuple(indices.to_bits(numbers, self.bits) for numbers in quantised.symbols)
            return image, quantised.symbols

        def after_each_scale(params, image_BHW3):
            _, quantised = through_bits(module, params, image_BHW3, schedule)
            quantizer = quantizer_of(config, params, schedule.n_scales)
            sums = [
                pyramid.sum_of_codes(quantised.symbols[: k + 1], schedule.last, quantizer)
                for k in range(schedule.n_scales)
            ]
            return jax.lax.map(partial(module.apply, {"params": params}, method="decode"), jnp.stack(sums))

        self._there_and_back = jax.jit(there_and_back)
        self._after_each_scale = jax.jit(after_each_scale)

    def batches(
        self, image_NHW3: UInt8[np.ndarray, "N H W 3"]
    ) -> Iterator[tuple[UInt8[np.ndarray, "B H W 3"], Bits]]:
        """Yields reconstructions uint8 and the bits behind them, batch after batch."""
        for batch, n in filled_batches(image_NHW3, self.batch_size):
            image, bits = self._there_and_back(self._params, pictures.to_float(batch))
            yield pictures.to_uint8(np.asarray(image)[:n]), tuple(np.asarray(b)[:n] for b in bits)

    def __call__(self, image_NHW3: UInt8[np.ndarray, "N H W 3"]) -> UInt8[np.ndarray, "N H W 3"]:
        """Returns all reconstructions, uint8."""
        return np.concatenate([image_NHW3[:0], *(image for image, _ in self.batches(image_NHW3))])

    def after_each_scale(
        self, image_NHW3: UInt8[np.ndarray, "N H W 3"]
    ) -> list[UInt8[np.ndarray, "N H W 3"]]:
        """Returns K arrays uint8: the decoded sum of the first 1, 2, ... K scales; the last is the reconstruction."""
        parts = [
            pictures.to_uint8(
                np.asarray(self._after_each_scale(self._params, pictures.to_float(batch)))[:, :n]
            )
            for batch, n in filled_batches(image_NHW3, self.batch_size)
        ]
        return list(np.concatenate(parts, axis=1))
