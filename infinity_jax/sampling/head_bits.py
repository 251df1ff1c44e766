"""From the last block's output to bits: the plain form, and which form runs where (spec section 7).

The head is linear after its norm, and of a bit's two logits only the difference matters. So guidance mixes what the
linear map reads, and the map has one column a bit: a quarter of the products of two logits for both halves. In low
precision it is also more exact, since the strong mix is rounded once, not each of its parts.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

from infinity_jax.config import TransformerConfig
from infinity_jax.runtime.devices import on_each_device, platform
from infinity_jax.runtime.sharding import constrain
from infinity_jax.sampling import bits, bits_pallas, guidance
from infinity_jax.transformer.heads import BitHead
from infinity_jax.transformer.kernels.matmul import matmul
from infinity_jax.transformer.layers import NORM_EPS

KERNELS = {"gpu": bits_pallas.draw_on_gpu, "tpu": bits_pallas.draw_on_tpu}


class DifferenceHead(NamedTuple):
    """What the last step of every scale reads of the parameters and the text.

    Attributes:
      modulation_BG2C: float32, scale and shift of the head's norm for each half.
      weight_Cd: the linear map's weights of class 1 minus those of class 0, in the type of the product's operands.
      bias_d: float32, the same of its biases.
    """

    modulation_BG2C: Float[Array, "B G 2 C"]
    weight_Cd: Float[Array, "C d"]
    bias_d: Float[Array, " d"]


def difference_head(
    config: TransformerConfig, params: Any, vector_NC: Float[Array, "N C"], halves: int
) -> DifferenceHead:
    """The head of a batch, once for all scales.

    Args:
      params: the transformer's.
      vector_NC: float32, the text's vector for each picture; N is B, or 2B with guidance (with caption, then without).
      halves: G, 1 or 2 for guidance.
    """
    head = params["bit_head"]
    modulation_BG2C = modulations(config, head, vector_NC, halves)
    kernel_Cd2 = head["logits"]["kernel"].reshape(config.width, config.bits, 2).astype(jnp.float32)
    bias_d2 = head["logits"]["bias"].reshape(config.bits, 2).astype(jnp.float32)
    weight_Cd = (kernel_Cd2[..., 1] - kernel_Cd2[..., 0]).astype(config.compute_dtype)
    return DifferenceHead(modulation_BG2C, weight_Cd, bias_d2[:, 1] - bias_d2[:, 0])


def modulations(config: TransformerConfig, head: Any, vector_NC: jax.Array, halves: int) -> jax.Array:
    """Scale and shift of a head's norm, float32 [B,G,2,C], from its parameters; arguments as in `difference_head`."""
    modulation = BitHead(config).apply({"params": head}, vector_NC, method="modulation")
    return jnp.asarray(modulation).reshape(halves, -1, 2, config.width).swapaxes(0, 1)


def draw_head_bits(
    hidden_GBNC: Float[Array, "G B N C"],
    head: DifferenceHead,
    cfg: Float[Array, ""],
    seeds_B: UInt32[Array, " B"],
    scale: int,
    tau: Float[Array, ""],
    top_p: Float[Array, ""],
) -> Bool[Array, "B N d"]:
    """Bits of one scale: one kernel on TPU and NVIDIA GPUs, plain jax on CPU; the same bits from the same seeds.

    Args:
      hidden_GBNC: float32 or bfloat16, the last block's output, before the head's norm. G is 1, or 2 for guidance:
        with caption, then without. No time is lost where a picture's halves lie side by side in memory.
      head: of at least so many halves; others are not read.
      cfg: strength of guidance; not used without a second half.
      seeds_B, scale, tau, top_p: as `bits.draw_bits` has them.
    """
    if platform() not in KERNELS:
        return bits.draw_bits(logit_difference(hidden_GBNC, head, cfg), seeds_B, scale, tau, top_p)
    return _by_kernel(hidden_GBNC, head, cfg, seeds_B, scale, tau, top_p).astype(bool)


def logit_difference(
    hidden_GBNC: Float[Array, "G B N C"], head: DifferenceHead, cfg: Float[Array, ""]
) -> Float[Array, "B N d"]:
    """Logit of 1 minus logit of 0 of each bit, float32, after guidance; arguments as `draw_head_bits` has them."""
    return guided_product(hidden_GBNC, head.modulation_BG2C, head.weight_Cd, head.bias_d, cfg)


def guided_product(
    hidden_GBNC: Float[Array, "G B N C"],
    modulation_BG2C: Float[Array, "B G2 2 C"],
    weight_Cn: Float[Array, "C n"],
    bias_n: Float[Array, " n"],
    cfg: Float[Array, ""],
) -> Float[Array, "B N n"]:
    """The norm of a head, guidance, and its linear map, float32; arguments as `draw_head_bits` has them."""
    x_BGNC = constrain(_side_by_side(hidden_GBNC), "batch", None, "tokens", None).astype(jnp.float32)
    # Statistics of both halves at once, since XLA:CPU copies a half that has several uses.
    mean = x_BGNC.mean(-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(x_BGNC - mean).mean(-1, keepdims=True) + NORM_EPS)
    scale, shift = jnp.split(modulation_BG2C, 2, 2)
    mixed, *others = (
        (x_BGNC[:, g] - mean[:, g]) * factor[:, g] * (1 + scale[:, g]) + shift[:, g]
        for g in range(x_BGNC.shape[1])
    )
    if others:
        mixed = guidance.mix(mixed, others[0], cfg)
    return matmul(mixed, weight_Cn, weight_Cn.dtype.name) + bias_n


def _side_by_side(hidden_GBNC: jax.Array) -> jax.Array:
    """[B,G,N,C], as the sampler keeps it: XLA lets this meet the sampler's own exchange of axes."""
    return hidden_GBNC.swapaxes(0, 1)


def _by_kernel(hidden_GBNC, head: DifferenceHead, cfg, seeds_B, scale: int, tau, top_p) -> jax.Array:
    draw = KERNELS[platform()]
    halves, _, tokens, _ = hidden_GBNC.shape
    head = head._replace(modulation_BG2C=head.modulation_BG2C[:, :halves])
    number_N = jnp.arange(tokens, dtype=jnp.uint32)  # of a token in its picture

    def on_a_device(hidden_BGNC, modulation_BG2C, weight_Cd, bias_d, cfg, seeds_B, tau, top_p, number_N):
        arrays = hidden_BGNC, modulation_BG2C, weight_Cd, bias_d
        return draw(*arrays, cfg, seeds_B, scale, tau, top_p, number_N[0])

    of_head = ("batch", None, None, None), (None, None), (None,)
    axes = ("batch", None, "tokens", None), *of_head, (), ("batch",), (), (), ("tokens",)
    on_devices = on_each_device(on_a_device, axes, ("batch", "tokens", None))
    return on_devices(_side_by_side(hidden_GBNC), *head, cfg, seeds_B, tau, top_p, number_N)
