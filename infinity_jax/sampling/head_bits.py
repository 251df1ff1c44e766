"""From the last block's output to bits: the plain form, and which form runs where (docs/spec.md section 7).

The head is linear after its norm, and of a bit's two logits only the difference matters. So guidance mixes what the
linear map reads, and the map has one column a bit: a quarter of the products that two logits take for a conditional
and an unconditional row. In low precision it is also more exact, since the strong mix is rounded once, not each of its
parts.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from infinity_jax.config import TransformerConfig
from infinity_jax.runtime.devices import on_each_device, platform
from infinity_jax.runtime.sharding import constrain
from infinity_jax.sampling import bits, bits_pallas, guidance
from infinity_jax.sampling.bits import LinearHead
from infinity_jax.transformer.heads import BitHead
from infinity_jax.transformer.kernels.matmul import matmul
from infinity_jax.transformer.layers import NORM_EPS

KERNELS = {"gpu": bits_pallas.draw_on_gpu, "tpu": bits_pallas.draw_on_tpu}


def difference_head(
    config: TransformerConfig, params: Any, vector_NC: Float[Array, "N C"], rows: int
) -> LinearHead:
    """Prepares the head of a batch, once for all scales: class 1 of each bit minus class 0.

    Args:
      params: the transformer's.
      vector_NC: float32, the text's vectors; N is B, or 2B with guidance (all conditional, then all unconditional).
      rows: G, of each picture: 1, or 2 for guidance.
    """
    head = params["bit_head"]
    modulation_BG2C = modulations(config, head, vector_NC, rows)
    kernel_Cd2 = head["logits"]["kernel"].reshape(config.width, config.bits, 2).astype(jnp.float32)
    bias_d2 = head["logits"]["bias"].reshape(config.bits, 2).astype(jnp.float32)
    weight_Cn = (kernel_Cd2[..., 1] - kernel_Cd2[..., 0]).astype(config.compute_dtype)
    return LinearHead(modulation_BG2C, weight_Cn, bias_d2[:, 1] - bias_d2[:, 0])


def modulations(config: TransformerConfig, head: Any, vector_NC: jax.Array, rows: int) -> jax.Array:
    """Returns scale and shift of a head's norm, float32 [B,G,2,C]; `head` is its parameters."""
    modulation = BitHead(config).apply({"params": head}, vector_NC, method="modulation")
    return jnp.asarray(modulation).reshape(rows, -1, 2, config.width).swapaxes(0, 1)


def draw_head_bits(
    hidden_GBNC: Float[Array, "G B N C"],
    head: LinearHead,
    cfg_B: Float[Array, " B"],
    settings: bits.DrawSettings,
) -> Bool[Array, "B N d"]:
    """Draws the bits of one scale: one kernel on TPU and NVIDIA GPUs, plain jax on CPU; the same bits on all.

    Args:
      hidden_GBNC: float32 or bfloat16, the last block's output, before the head's norm. G is 1, or 2 for guidance:
        conditional, then unconditional. No time is lost where a picture's rows lie side by side in memory.
      head: of at least so many rows; others are not read.
      cfg_B: float32, strength of guidance of each picture; not used without an unconditional row.
    """
    if platform() not in KERNELS:
        return bits.draw_bits(guided_logits(hidden_GBNC, head, cfg_B), settings)
    return _by_kernel(hidden_GBNC, head, cfg_B, settings).astype(bool)


def guided_logits(
    hidden_GBNC: Float[Array, "G B N C"], head: LinearHead, cfg_B: Float[Array, " B"]
) -> Float[Array, "B N n"]:
    """Applies a head's norm, guidance and linear map: float32 [B,N,n]; arguments as in `draw_head_bits`.

    Of each bit this is logit of 1 minus logit of 0.
    """
    # Pictures first, as the sampler keeps it: XLA cancels this with the sampler's own exchange of axes.
    x_BGNC = constrain(hidden_GBNC.swapaxes(0, 1), "batch", None, "tokens", None).astype(jnp.float32)
    # Statistics of both rows at once, since XLA:CPU copies a slice that has several uses.
    mean = x_BGNC.mean(-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.square(x_BGNC - mean).mean(-1, keepdims=True) + NORM_EPS)
    scale, shift = jnp.split(head.modulation_BG2C, 2, 2)
    mixed, *unconditional = (
        (x_BGNC[:, g] - mean[:, g]) * factor[:, g] * (1 + scale[:, g]) + shift[:, g]
        for g in range(x_BGNC.shape[1])
    )
    if unconditional:
        mixed = guidance.mix(mixed, unconditional[0], cfg_B[:, None, None])
    return matmul(mixed, head.weight_Cn, head.weight_Cn.dtype.name) + head.bias_n


def probabilities(
    hidden_GBNC: Float[Array, "G B N C"],
    head: LinearHead,
    cfg_B: Float[Array, " B"],
    tau_B: Float[Array, " B"],
) -> Float[Array, "B N d"]:
    """Computes how likely each bit is 1, after guidance and temperature; with temperature 0 it is 0 or 1."""
    logits_BNd, tau_B11 = guided_logits(hidden_GBNC, head, cfg_B), tau_B[:, None, None]
    warm = jax.nn.sigmoid(logits_BNd / jnp.where(tau_B11 > 0, tau_B11, 1.0))
    return jnp.where(tau_B11 > 0, warm, (logits_BNd > 0).astype(jnp.float32))


def _by_kernel(
    hidden_GBNC: jax.Array, head: LinearHead, cfg_B: jax.Array, settings: bits.DrawSettings
) -> jax.Array:
    draw = KERNELS[platform()]
    rows, _, tokens, _ = hidden_GBNC.shape
    head = head._replace(modulation_BG2C=head.modulation_BG2C[:, :rows])
    number_N = jnp.arange(tokens, dtype=jnp.uint32)  # of a token in its picture

    def on_a_device(
        hidden_BGNC, modulation_BG2C, weight_Cn, bias_n, cfg_B, seeds_B, tau_B, top_p_B, number_N
    ):
        of_device = LinearHead(modulation_BG2C, weight_Cn, bias_n)
        its_settings = dataclasses.replace(settings, seeds_B=seeds_B, tau_B=tau_B, top_p_B=top_p_B)
        return draw(hidden_BGNC, of_device, cfg_B, its_settings, number_N[0])

    of_head = ("batch", None, None, None), (None, None), (None,)
    axes = ("batch", None, "tokens", None), *of_head, *[("batch",)] * 4, ("tokens",)
    on_devices = on_each_device(on_a_device, axes, ("batch", "tokens", None))
    numbers = cfg_B, settings.seeds_B, settings.tau_B, settings.top_p_B
    return on_devices(hidden_GBNC.swapaxes(0, 1), *head, *numbers, number_N)
