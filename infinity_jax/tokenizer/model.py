"""The whole tokenizer: picture -> features -> multi-scale bits -> picture."""

import contextlib
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from infinity_jax.config import VECTOR, VIT, TokenizerConfig
from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import convolution, halves, pyramid, strips, vq
from infinity_jax.tokenizer.autoencoder import conv
from infinity_jax.tokenizer.bsq import BinaryQuantizer
from infinity_jax.tokenizer.convolution import Arithmetic
from infinity_jax.tokenizer.decoder_memory import memory_here


def exact(dtype: str) -> contextlib.AbstractContextManager[object]:
    """Makes what is traced within compute float32 as such, which a TPU would round to bfloat16, and a GPU to TF32.

    Bits depend on it: a feature near zero gets another sign. `dtype` is that of the operands; bfloat16 ones are exact.
    """
    return jax.default_matmul_precision("highest") if dtype == "float32" else contextlib.nullcontext()


class Codebook(nn.Module):
    """The parameters of a `vq.VectorQuantizer`."""

    config: TokenizerConfig

    @nn.compact
    def __call__(self, n_scales: int) -> vq.VectorQuantizer:
        """Makes the quantiser of pictures of K scales."""
        c = self.config
        # As in PyTorch: a normal for the codes, and what a convolution begins with.
        bound = (9 * c.bits) ** -0.5
        uniform = nn.initializers.uniform(2 * bound)

        def around_zero(*args: Any) -> jax.Array:
            return uniform(*args) - bound

        def own(name: str, init: Any, *shape: int) -> Any:
            return self.param(name, nn.with_logical_partitioning(init, (None,) * len(shape)), shape)

        codes = own("codes", nn.initializers.normal(1.0), c.codes, c.bits)
        if not c.phis:
            return vq.VectorQuantizer(codes, share=0.0, by_cosine=c.by_cosine, sphere=c.sphere)
        return vq.VectorQuantizer(
            codes,
            own("phi_kernels", around_zero, c.phis, 3, 3, c.bits, c.bits),
            own("phi_biases", around_zero, c.phis, c.bits),
            vq.phi_of_scale(n_scales, c.phis),
            c.phi_share,
            c.by_cosine,
            c.sphere,
        )


class Tokenizer(nn.Module):
    """Autoencoder of bits (paper section 3.2, docs/spec_bsq_vit.md), or of codes (docs/spec_var.md section 2)."""

    config: TokenizerConfig

    def setup(self):
        c = self.config
        encoder, decoder = halves.networks_of(c)
        self.encoder, self.decoder = cast(Any, encoder)(c), cast(Any, decoder)(c)
        if c.quantizer == VECTOR:
            self.codebook = Codebook(c)
        if c.latent_kernel:
            self.latent_in, self.latent_out = (
                conv(Arithmetic.of(c), c.bits, kernel=c.latent_kernel) for _ in range(2)
            )

    def quantizer(self, n_scales: int) -> pyramid.Quantizer:
        """Gives the quantiser of pictures of K scales."""
        return self.codebook(n_scales) if self.config.quantizer == VECTOR else binary_quantizer(self.config)

    def encode(self, image_BHW3: Float[Array, "B H W 3"]) -> Float[Array, "B h w d"]:
        """Computes features float32 [B,H/stride,W/stride,bits] of pictures float32 in [-1,1]; in float32 `exact`."""
        with exact(self.config.compute_dtype):
            return self._features(image_BHW3)

    def _features(self, image_BHW3: jax.Array) -> jax.Array:
        features = self.encoder(halves.seen(self.config, image_BHW3))
        return self.latent_in(features) if self.config.latent_kernel else features

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
            if self.config.latent_kernel:
                codes_BHWd = self.latent_out(codes_BHWd)
            if self.is_initializing() or not strips.needed(self.config, codes_BHWd.shape, numbers, memory):
                decoded = self.decoder(codes_BHWd, numbers)
            else:
                params = nn.meta.unbox(self.decoder.variables["params"])
                decoded = strips.decode(self.config, params, codes_BHWd, numbers, memory)
            return jnp.clip(halves.shown(self.config, decoded), -1.0, 1.0)

    def __call__(
        self,
        image_BHW3: Float[Array, "B H W 3"],
        schedule: ScaleSchedule,
        keep_BK: Bool[Array, "B K"] | None = None,
        detach_residuals: bool = True,
        commitment: float = vq.COMMITMENT,
    ) -> tuple[Float[Array, "B H W c"], pyramid.Pyramid]:
        """Gives what `halves.shown` makes reconstructions of, and the pyramid of pictures.

        They are not clipped, so that the gradient lives everywhere. In the device's own precision, in which it trains.
        For `commitment` see `vq.quantise`, for the others `pyramid.quantise`.
        """
        features, quantizer = self._features(image_BHW3), self.quantizer(schedule.n_scales)
        if isinstance(quantizer, vq.VectorQuantizer):
            quantised = vq.quantise(features, schedule, quantizer, commitment)
        else:
            assert isinstance(quantizer, BinaryQuantizer)
            quantised = pyramid.quantise(features, schedule, quantizer, keep_BK, detach_residuals)
        codes = quantised.running_sum_BHWd
        return self.decoder(self.latent_out(codes) if self.config.latent_kernel else codes), quantised


def binary_quantizer(config: TokenizerConfig) -> BinaryQuantizer:
    """Makes the quantiser of a tokenizer of bits."""
    return BinaryQuantizer(config.quantizer, config.scaled_gradient)


def quantizer_of(config: TokenizerConfig, params: PyTree, n_scales: int) -> pyramid.Quantizer:
    """Makes the quantiser of a tokenizer for pictures of K scales; bits need no parameters, which may be None."""
    if config.quantizer != VECTOR:
        return binary_quantizer(config)
    own = {"codebook": jax.tree.map(jnp.asarray, params["codebook"])}
    return cast(Any, Tokenizer(config).apply)({"params": own}, n_scales, method="quantizer")


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
    return jnp.clip(halves.shown(tokenizer.config, image), -1.0, 1.0), quantised


def initial_variables(tokenizer: Tokenizer, side: int, seed: int) -> PyTree:
    """Draws fresh float32 parameters for pictures of `side` x `side` pixels, boxed with their logical axis names.

    Those of a ViT are for the side of its config.
    """
    side = tokenizer.config.side if tokenizer.config.architecture == VIT else side
    last = side // tokenizer.config.stride
    schedule = ScaleSchedule(((last, last),), (last, last))
    image = jnp.zeros((1, side, side, 3), jnp.float32)
    return tokenizer.init(jax.random.key(seed), image, schedule)["params"]
