"""Binary quantisers: BSQ (on the sphere) and LFQ (without it); bits, codes and straight-through gradients."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int8

from infinity_jax.tokenizer import resize

# The same floor as the release's l2 normalisation.
_NORM_FLOOR = 1e-12


def code_size(bits: int, quantizer: str) -> float:
    """Returns the size of a code's channels: 1/sqrt(d) for BSQ, so that codes lie on the sphere; 1 for LFQ."""
    return bits**-0.5 if quantizer == "bsq" else 1.0


def project(residual: Float[Array, "... d"], quantizer: str) -> Float[Array, "... d"]:
    """Projects a residual for its sign to be taken: onto the unit sphere (BSQ, paper eq. 4) or not at all (LFQ)."""
    if quantizer == "lfq":
        return residual
    squares = jnp.sum(residual**2, axis=-1, keepdims=True)
    return residual * jax.lax.rsqrt(jnp.maximum(squares, _NORM_FLOOR**2))


def to_bits(z: Float[Array, "... d"]) -> Bool[Array, "... d"]:
    """Takes the bits of projected residuals: z > 0, so that zero counts as negative (docs/spec.md section 2)."""
    return z > 0


def to_codes(
    bits: Bool[Array, "... d"] | Int8[Array, "... d"], quantizer: str = "bsq"
) -> Float[Array, "... d"]:
    """Makes float32 codes of bits: +-1/sqrt(d) (BSQ) or +-1 (LFQ)."""
    size = code_size(bits.shape[-1], quantizer)
    return jnp.where(bits.astype(bool), size, -size).astype(jnp.float32)


def straight_through(
    z: Float[Array, "... d"], quantizer: str, scaled_gradient: bool = False
) -> Float[Array, "... d"]:
    """Quantises z with the gradient of the identity (paper section 3.2), or with that times the size of a code."""
    passed = z * code_size(z.shape[-1], quantizer) if scaled_gradient else z
    return passed + jax.lax.stop_gradient(to_codes(to_bits(z), quantizer) - passed)


@flax.struct.dataclass
class BinaryQuantizer:
    """A `pyramid.Quantizer` of bits; codes are resized bilinearly (paper eq. 1; docs/spec.md section 2).

    Attributes:
      name: "bsq" or "lfq".
      scaled_gradient: see `straight_through`.
      input_resize: how the running sum becomes the next input, "bilinear", or "area" as NSARM draws
        (docs/spec_nsarm.md section 4).
    """

    name: str = flax.struct.field(pytree_node=False, default="bsq")
    scaled_gradient: bool = flax.struct.field(pytree_node=False, default=False)
    input_resize: str = flax.struct.field(pytree_node=False, default="bilinear")

    def project(self, residual: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Projects a residual for its sign to be taken, see `project`."""
        return project(residual, self.name)

    def choose(self, z: Float[Array, "... d"]) -> Bool[Array, "... d"]:
        """Takes the bits of projected residuals, see `to_bits`."""
        return to_bits(z)

    def look_up(self, symbols: Bool[Array, "... d"] | Int8[Array, "... d"]) -> Float[Array, "... d"]:
        """Makes the codes of bits, see `to_codes`."""
        return to_codes(symbols, self.name)

    def straight_through(self, z: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Quantises z with a gradient, see `straight_through`."""
        return straight_through(z, self.name, self.scaled_gradient)

    def add(
        self, running_sum_BHWd: Float[Array, "B H W d"], codes_BhwD: Float[Array, "B h w d"], scale: int
    ) -> Float[Array, "B H W d"]:
        """Adds a scale's codes to the running sum, resized bilinearly to the sum's size."""
        height, width = running_sum_BHWd.shape[1:3]
        return running_sum_BHWd + resize.bilinear(codes_BhwD, (height, width))

    def next_input(
        self, running_sum_BHWd: Float[Array, "B H W d"], size: tuple[int, int]
    ) -> Float[Array, "B h w d"]:
        """Resizes the running sum to the next scale."""
        resized = {"bilinear": resize.bilinear, "area": resize.area}[self.input_resize]
        return resized(running_sum_BHWd, size)


BSQ = BinaryQuantizer()
