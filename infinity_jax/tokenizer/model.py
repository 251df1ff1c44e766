"""The whole tokenizer: picture -> features -> multi-scale bits -> picture."""

import contextlib
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from infinity_jax.config import TokenizerConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import convolution, pyramid, strips
from infinity_jax.tokenizer.autoencoder import Decoder, Encoder
from infinity_jax.tokenizer.decoder_memory import memory_here


def exact(dtype: str) -> contextlib.AbstractContextManager[object]:
    """Makes what is traced within compute float32 as such, which a TPU would round to bfloat16, and a GPU to TF32.

    Bits depend on it: a feature near zero gets another sign. `dtype` is that of the operands; bfloat16 ones are exact.
    """
    return jax.default_matmul_precision("highest") if dtype == "float32" else contextlib.nullcontext()


class Tokenizer(nn.Module):
    """BSQ (or LFQ) autoencoder (paper section 3.2)."""

    config: TokenizerConfig

    def setup(self):
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def encode(self, image_BHW3: Float[Array, "B H W 3"]) -> Float[Array, "B h w d"]:
        """Computes features float32 [B,H/stride,W/stride,bits] of pictures float32 in [-1,1]; in float32 `exact`."""
        with exact(self.config.compute_dtype):
            return self.encoder(image_BHW3)

    def decode(
        self, codes_BHWd: Float[Array, "B h w d"], operands: str | None = None
    ) -> Float[Array, "B H W 3"]:
        """Draws pictures float32 in [-1,1] from a sum of codes float32 [B,h,w,bits]; many or large ones in parts.

        Args:
          operands: what is multiplied, with float32 sums: "float32", `exact`, or "bfloat16" where that is quicker
            (`convolution.drawing`). None computes in the config's compute dtype.
        """
        numbers = (
            convolution.Arithmetic.of(self.config) if operands is None else convolution.drawing(operands)
        )
        memory = memory_here(numbers)
        with exact(numbers.operands):
            if self.is_initializing() or not strips.needed(self.config, codes_BHWd.shape, numbers, memory):
                return jnp.clip(self.decoder(codes_BHWd, numbers), -1.0, 1.0)
            params = nn.meta.unbox(self.decoder.variables["params"])
            return jnp.clip(strips.decode(self.config, params, codes_BHWd, numbers, memory), -1.0, 1.0)

    def __call__(
        self,
        image_BHW3: Float[Array, "B H W 3"],
        schedule: ScaleSchedule,
        keep_BK: Bool[Array, "B K"] | None = None,
        detach_residuals: bool = True,
    ) -> tuple[Float[Array, "B H W 3"], pyramid.Pyramid]:
        """Reconstructs pictures and gives their pyramid; not clipped, so that the gradient lives everywhere.

        In the device's own precision, in which it trains.
        """
        quantised = pyramid.quantise(
            self.encoder(image_BHW3), schedule, self.config.quantizer, keep_BK, detach_residuals
        )
        return self.decoder(quantised.running_sum_BHWd), quantised


def reconstruct(
    tokenizer: Tokenizer, params: PyTree, image_BHW3: jax.Array, schedule: ScaleSchedule
) -> jax.Array:
    """Sends pictures float32 [B,H,W,3] in [-1,1] through all bits of `schedule` and back; in float32 `exact`."""
    image, _ = through_bits(tokenizer, params, image_BHW3, schedule)
    return image


def through_bits(
    tokenizer: Tokenizer, params: PyTree, image_BHW3: jax.Array, schedule: ScaleSchedule
) -> tuple[jax.Array, pyramid.Pyramid]:
    """Gives what `reconstruct` does, and the pyramid behind it."""
    with exact(tokenizer.config.compute_dtype):
        image, quantised = cast(Any, tokenizer.apply)({"params": params}, image_BHW3, schedule)
    return jnp.clip(image, -1.0, 1.0), quantised


def initial_variables(tokenizer: Tokenizer, side: int, seed: int) -> PyTree:
    """Draws fresh float32 parameters for pictures of `side` x `side` pixels, boxed with their logical axis names."""
    last = side // tokenizer.config.stride
    schedule = ScaleSchedule(((last, last),), (last, last))
    image = jnp.zeros((1, side, side, 3), jnp.float32)
    return tokenizer.init(jax.random.key(seed), image, schedule)["params"]
