"""The convolutions of the tokenizer: in which numbers, by which operation, and after a doubling of the size."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from infinity_jax.config import TokenizerConfig
from infinity_jax.runtime.devices import multiplies_bfloat16, platform

# Products with fewer results a place, like the three colours, take longer than a convolution.
_LEAST_FEATURES = 32
# Up to so many channels all nine neighbours of a place are gathered for one product, above only those of its row.
_FEW_CHANNELS = 128
# Gathered for one product: the second level of a processor's caches holds it.
_GATHERED_BYTES = 2**20
Sides = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """The numbers of a network of convolutions.

    Attributes:
      operands: dtype of what is multiplied.
      maps: dtype of sums, and of maps between the layers.
      by_products: convolve by matrix products of gathered neighbours, see `by_products`.
    """

    operands: str
    maps: str
    by_products: bool = False

    @classmethod
    def of(cls, config: TokenizerConfig) -> "Arithmetic":
        """Names the numbers in which a tokenizer trains: all of them are of its compute dtype."""
        return cls(config.compute_dtype, config.compute_dtype)


def drawing(operands: str) -> Arithmetic:
    """Chooses the numbers in which pictures are drawn, on the devices that are traced for: float32 sums and maps.

    bfloat16 operands are taken where they are quicker: on accelerators, and by products on a CPU that multiplies them.
    XLA's convolutions on a CPU are no quicker with them, and where it lacks the instruction no product is.
    """
    if operands == "bfloat16" and platform() == "cpu":
        native = multiplies_bfloat16()
        return Arithmetic("bfloat16" if native else "float32", "float32", by_products=native)
    return Arithmetic(operands, "float32")


def convolve(
    x_BHWC: Float[Array, "B H W C"],
    kernel_kkio: Float[Array, "k l C F"],
    arithmetic: Arithmetic,
    rows: Sides = (0, 0),
    columns: Sides = (0, 0),
    strides: Sides = (1, 1),
) -> Float[Array, "B h w F"]:
    """Convolves a map, with so many rows and columns of zeros around it; the result has the dtype `arithmetic.maps`."""
    x_BHWC, kernel_kkio = (x.astype(arithmetic.operands) for x in (x_BHWC, kernel_kkio))
    if arithmetic.by_products and strides == (1, 1) and kernel_kkio.shape[3] >= _LEAST_FEATURES:
        return by_products(jnp.pad(x_BHWC, ((0, 0), rows, columns, (0, 0))), kernel_kkio)
    same = arithmetic.operands == arithmetic.maps
    return lax.conv_general_dilated(
        x_BHWC,
        kernel_kkio,
        strides,
        (rows, columns),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=None if same else jnp.dtype(arithmetic.maps),
    )


def by_products(
    x_BHWC: Float[Array, "B H W C"], kernel_kkio: Float[Array, "k l C F"]
) -> Float[Array, "B h w F"]:
    """Convolves a map by products over gathered neighbours, with float32 sums; there is nothing around the map.

    Of many channels the neighbours in a row are gathered once, and there is a product for each row of the kernel. Of
    few, all are gathered for one product, some rows at a time: its sum is the longer, and no partial sum is written.
    """
    k_rows, k_columns, channels, features = kernel_kkio.shape
    batch, height, width = x_BHWC.shape[0], x_BHWC.shape[1] - k_rows + 1, x_BHWC.shape[2] - k_columns + 1
    x = jnp.concatenate([x_BHWC[:, :, j : j + width] for j in range(k_columns)], -1)
    kernel = kernel_kkio.reshape(k_rows, k_columns * channels, features)
    if channels > _FEW_CHANNELS:
        parts = (_product(x[:, i : i + height], kernel[i]) for i in range(k_rows))
        return sum(parts, start=jnp.zeros((), jnp.float32))
    joined = kernel.reshape(-1, features)

    def some(first: jax.Array) -> jax.Array:
        rows = lax.dynamic_slice_in_dim(x, first, n + k_rows - 1, 1)
        return _product(jnp.concatenate([rows[:, i : i + n] for i in range(k_rows)], -1), joined)

    row = batch * width * joined.shape[0] * x.dtype.itemsize
    n = max(n for n in range(1, height + 1) if height % n == 0 and n * row <= max(_GATHERED_BYTES, row))
    by_part = lax.map(some, jnp.arange(0, height, n))
    return jnp.moveaxis(by_part, 0, 1).reshape(batch, height, width, features)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.einsum("bhwc,cf->bhwf", x, kernel, preferred_element_type=jnp.float32)


def convolve_doubled(
    x_BHWC: Float[Array, "B h w C"], kernel_22iO: Float[Array, "2 2 C O"], arithmetic: Arithmetic, rows: Sides
) -> Float[Array, "B H W F"]:
    """Doubles rows and columns and convolves with a 3x3 kernel, in four products a result instead of nine.

    The four results of a place are features of one convolution of the map as it was.

    Args:
      kernel_22iO: the 3x3 kernel as `before_doubling` has made it, O = 4 F.
      rows: of zeros above and below, before doubling. The result is that of all rows but the first and the last.
    """
    y = convolve(x_BHWC, kernel_22iO, arithmetic, rows, (1, 1))
    # At row r there are the results 2r - 1 and 2r.
    batch, height, width, features = y.shape
    y = y.reshape(batch, height, width, 2, 2, features // 4)
    y = y.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, features // 4)
    return y[:, 1:-1, 1:-1]


def before_doubling(kernel_33io: Float[Array, "3 3 C F"]) -> Float[Array, "2 2 C O"]:
    """Sums the taps of a kernel that see the same place once rows and columns are doubled.

    A result sees two different rows and two different columns. Features of the sums are by its row and column, odd
    ones first.
    """

    def pairs(taps: jax.Array) -> jax.Array:
        """Gives the two taps of odd and of even results: [3, ...] -> [2, 2, ...]."""
        odd, even = (taps[0] + taps[1], taps[2]), (taps[0], taps[1] + taps[2])
        return jnp.stack([jnp.stack(odd), jnp.stack(even)])

    by_row_and_column = pairs(jnp.moveaxis(pairs(kernel_33io), 2, 0))
    kernel = jnp.einsum("qbpacf->abcpqf", by_row_and_column)
    return kernel.reshape(2, 2, kernel_33io.shape[2], -1)
