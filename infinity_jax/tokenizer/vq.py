"""VAR's quantiser: each token is one row of a codebook; codes are upsampled and refined by shared convolutions (phi).

Tian et al., arXiv 2404.02905, section 3.2; docs/spec_var.md section 2.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from infinity_jax.scales import ScaleSchedule
from infinity_jax.tokenizer import resize
from infinity_jax.tokenizer.pyramid import Pyramid, residual_at_scale

# Usual weight of the term that draws features to the codes.
COMMITMENT = 0.25
# Products of tokens with codes that are held at once: 1 GiB.
_MOST_PRODUCTS = 2**28


def phi_of_scale(n_scales: int, n_phis: int) -> tuple[int, ...]:
    """Tells which of `n_phis` convolutions each of K scales uses; 0 is one for each scale, 1 one for all.

    The nearest of evenly spread places to k / (K - 1), the first of two equally near ones, in float64 as in the
    release, whose rounding decides some of them.
    """
    n = n_phis or n_scales
    edge = 1 / (3 * n) if n == 4 else 1 / (2 * n)
    places = np.linspace(edge, 1 - edge, n)
    return tuple(int(np.argmin(np.abs(places - k / max(1, n_scales - 1)))) for k in range(n_scales))


@flax.struct.dataclass
class VectorQuantizer:
    """A `pyramid.Quantizer` whose symbols are numbers of codes, int32 [...].

    Attributes:
      codebook_VZ: the codes.
      phi_kernels: one 3x3 convolution each, [P,3,3,Z,Z].
      phi_biases: [P,Z].
      phis: which of them each scale uses, see `phi_of_scale`.
      share: r: codes become (1 - r) * codes + r * convolved ones; 0 leaves them as they are.
      by_cosine: choose the code by its direction instead of its distance.
      sphere: features and codes are scaled to unit length first.
    """

    codebook_VZ: Float[Array, "V Z"]
    phi_kernels: Float[Array, "P 3 3 Z Z"] | None = None
    phi_biases: Float[Array, "P Z"] | None = None
    phis: tuple[int, ...] = flax.struct.field(pytree_node=False, default=())
    share: float = flax.struct.field(pytree_node=False, default=0.5)
    by_cosine: bool = flax.struct.field(pytree_node=False, default=False)
    sphere: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def codes_VZ(self) -> Float[Array, "V Z"]:
        """The codes as they are looked up."""
        return _unit(self.codebook_VZ) if self.sphere else self.codebook_VZ

    def project(self, residual: Float[Array, "... Z"]) -> Float[Array, "... Z"]:
        """Leaves residuals as they are, or scales them to unit length."""
        return _unit(residual) if self.sphere else residual

    def choose(self, z: Float[Array, "*n Z"]) -> Int32[Array, " *n"]:
        """Finds the nearest code of each residual, of equally near ones the first."""
        if math.prod(z.shape[:-1]) * len(self.codebook_VZ) <= _MOST_PRODUCTS:
            return self._nearest(z)
        rows = max(1, _MOST_PRODUCTS // len(self.codebook_VZ))
        flat = jax.lax.map(self._nearest, z.reshape(-1, z.shape[-1]), batch_size=rows)
        return flat.reshape(z.shape[:-1])

    def _nearest(self, z: Float[Array, "*n Z"]) -> Int32[Array, " *n"]:
        precision = jax.lax.Precision.HIGHEST
        if self.by_cosine:
            cosines = jnp.matmul(_unit(z), _unit(self.codebook_VZ).T, precision=precision)
            return jnp.argmax(cosines, -1).astype(jnp.int32)
        products = jnp.matmul(z, self.codes_VZ.T, precision=precision)
        distances = jnp.square(self.codes_VZ).sum(-1) - 2 * products
        return jnp.argmin(distances, -1).astype(jnp.int32)

    def look_up(self, symbols: Int32[Array, " *n"] | Float[Array, "*n V"]) -> Float[Array, "*n Z"]:
        """Picks the codes of numbers, or mixes all of them by their shares."""
        if jnp.issubdtype(symbols.dtype, jnp.floating):
            return jnp.matmul(symbols, self.codes_VZ, precision=jax.lax.Precision.HIGHEST)
        return self.codes_VZ[symbols]

    def refined(
        self, codes_BhwZ: Float[Array, "B h w Z"], size: tuple[int, int], scale: int
    ) -> Float[Array, "B H W Z"]:
        """Resizes a scale's codes bicubically and refines them by the scale's convolution."""
        x = resize.bicubic(codes_BhwZ, size)
        if self.share == 0:
            return x
        assert self.phi_kernels is not None and self.phi_biases is not None
        number = self.phis[scale]
        convolved = jax.lax.conv_general_dilated(
            x,
            self.phi_kernels[number],
            (1, 1),
            ((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        return (1 - self.share) * x + self.share * (convolved + self.phi_biases[number])

    def add(
        self, running_sum_BHWd: Float[Array, "B H W Z"], codes_BhwD: Float[Array, "B h w Z"], scale: int
    ) -> Float[Array, "B H W Z"]:
        """Adds a scale's codes to the running sum, `refined`."""
        height, width = running_sum_BHWd.shape[1:3]
        return running_sum_BHWd + self.refined(codes_BhwD, (height, width), scale)

    def next_input(
        self, running_sum_BHWd: Float[Array, "B H W Z"], size: tuple[int, int]
    ) -> Float[Array, "B h w Z"]:
        """Averages the running sum over areas to the size of the next scale."""
        return resize.area(running_sum_BHWd, size)


def quantise(
    features_BHWZ: Float[Array, "B H W Z"],
    schedule: ScaleSchedule,
    quantizer: VectorQuantizer,
    commitment: float = COMMITMENT,
) -> Pyramid:
    """Quantises float32 features scale by scale, with the loss that trains codebook, convolutions and features.

    It is the mean over the scales of commitment * mse(sum without gradient, features) + mse(sum, features without
    gradient). The running sum's own gradient goes to the features alone, as if it were them.
    """
    features_BHWZ = quantizer.project(features_BHWZ)
    fixed = jax.lax.stop_gradient(features_BHWZ)
    running_sum, symbols, losses = jnp.zeros_like(fixed), [], []
    for k, size in enumerate(schedule.sizes):
        explained = jax.lax.stop_gradient(running_sum)
        chosen = quantizer.choose(residual_at_scale(fixed, explained, size, quantizer))
        running_sum = quantizer.add(running_sum, quantizer.look_up(chosen), k)
        symbols.append(chosen)
        held = jax.lax.stop_gradient(running_sum)
        losses.append(
            commitment * jnp.square(held - features_BHWZ).mean() + jnp.square(running_sum - fixed).mean()
        )
    straight = features_BHWZ + jax.lax.stop_gradient(running_sum - features_BHWZ)
    return Pyramid(tuple(symbols), jnp.stack(losses).mean(), straight)


def _unit(x: Float[Array, "*n Z"]) -> Float[Array, "*n Z"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
